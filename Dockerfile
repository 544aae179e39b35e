# A GPU image with the pinned set: docker build -t sysout_jax .
#   docker run --gpus all -v "$PWD/runs:/app/runs" sysout_jax python -m experiments.variants
# CUDA comes with jax[cuda12]; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt ./
# The plugin is of the version that requirements.txt pins JAX to.
RUN pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir "jax[cuda12]==$(python -c 'import jax; print(jax.__version__)')"
COPY . .
CMD ["python", "-m", "experiments.variants"]
