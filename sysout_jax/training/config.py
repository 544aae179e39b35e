"""What determines a training run."""

from dataclasses import dataclass, field, replace

from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError, at_least, of_kinds, one_of
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.execution import DTYPES
from sysout_jax.training.objective import Objective
from sysout_jax.training.optimizer import OptimizerConfig, check_cooldown
from sysout_jax.training.parallel import check_parallel
from sysout_jax.training.sharding import MeshShape, check_fits, parse_mesh


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run: the same config on the same device gives the
    same bits.

    Raises:
      InputError: a value is out of range.
    """

    variant: str = "softmax"  # a row of core/attention
    corpus: str = "stdlib"  # backcopy, stdlib, PATH (file, directory, glob), tokens:DIR
    tokenizer: str = "bytes"  # bytes, gpt2:DIR, PATH.json, bpe:SIZE
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    bos: bool = True  # sequences start with BOS, where the tokenizer or the task has one
    train_tokens: int | None = None  # of the training part, from its beginning; None: all
    seq_len: int = 64  # T, inputs per sequence
    batch_size: int = 16  # sequences per optimiser step
    accumulate: int | None = None  # equal parts of a batch; None: 1, or to fit a CPU's caches
    steps: int = 300  # optimiser steps
    seeds: tuple[int, ...] = (0,)  # initialisation and data order; trained together by vmap
    seeds_at_once: int = 8  # of the seeds, how many fit in memory together
    steps_per_call: int = 25  # optimiser steps compiled into one call; one record each call
    measure_every: int = 100  # steps between measurements of outliers and validation loss
    checkpoint_every: int = 0  # steps between the models that are kept on the way; 0: none
    val_batches: int = 8  # batches of validation text that each measurement uses
    measure_seq_len: int | None = None  # T of their rows; None: what is trained on
    loss_from: int = 0  # first prediction that is trained (1: not BOS's); measured are all
    penalties: tuple[str, ...] = ()  # on activations, NAME=WEIGHT of each: tweo=0.01
    param_dtype: str = "float32"  # of matrices while training: float32, bfloat16
    mesh: str = "data=1"  # devices along data, fsdp, tensor: data=2,fsdp=2,tensor=2
    parallel: str = "jit"  # how devices share the work: jit, or pmap, shard_map of data alone
    model: ModelConfig = field(default_factory=lambda: SHAPES["gpt2-tiny"])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        of_kinds(self)
        one_of("variant", self.variant, VARIANTS)
        one_of("param_dtype", self.param_dtype, DTYPES)
        for name in (
            "seq_len", "batch_size", "accumulate", "train_tokens", "steps", "seeds_at_once",
            "steps_per_call", "measure_every", "val_batches", "measure_seq_len",
        ):  # fmt: skip
            at_least(1, name, getattr(self, name))
        for name in ("checkpoint_every", "loss_from"):
            at_least(0, name, getattr(self, name))
        check_cooldown(self.optimizer, self.steps)
        _ = self.objective
        if self.measured_len > self.seq_len:
            raise InputError(
                "measure_seq_len", self.measure_seq_len, f"at most --seq_len={self.seq_len}"
            )
        if self.loss_from >= self.seq_len:
            raise InputError(
                "loss_from", self.loss_from, f"a position from 0 to {self.seq_len - 1}"
            )
        if self.batch_size % self.parts:
            raise InputError(
                "accumulate",
                self.accumulate,
                "a divisor of it",
                f"does not divide --batch_size={self.batch_size}",
            )
        if self.model.position == "learned":  # else it changes nothing
            self._agree("context", self.seq_len, "seq_len")
        self._agree("variant", self.variant, "variant")
        check_parallel(self.parallel, self.mesh_shape)
        check_fits(self.mesh_shape, self.model, self.batch_size, self.parts)
        in_range = all(0 <= seed < 2**32 for seed in self.seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not in_range:
            raise InputError(
                "seeds", ",".join(map(str, self.seeds)), "different integers from 0 to 2**32 - 1"
            )

    def _agree(self, name: str, value: object, field: str) -> None:
        """Refuse what the model's config says otherwise than the run does.

        Raises:
          InputError: names the field of the run that decides.
        """
        said = getattr(self.model, name)
        if said not in (value, getattr(ModelConfig, name)):
            raise InputError(
                f"model.{name}={said}",
                None,
                f"that, or a model without {name}",
                f"{field} of the run makes it {value}",
            )

    @property
    def measured_len(self) -> int:
        """T of the validation rows that models are measured on."""
        return self.measure_seq_len or self.seq_len

    @property
    def parts(self) -> int:
        """Equal parts of a batch that are asked for. Where none are, a mesh takes the batch whole,
        and one device may still cut it (`training.step.parts_of`)."""
        return self.accumulate or 1

    @property
    def objective(self) -> Objective:
        """What a step lowers."""
        return Objective(self.loss_from, self.penalties)

    @property
    def mesh_shape(self) -> MeshShape:
        """The mesh as numbers."""
        return parse_mesh(self.mesh)

    def architecture(self, vocab: int) -> ModelConfig:
        """The model's config, with what the run determines filled in.

        Raises:
          InputError: the model's says another size of the vocabulary.
        """
        self._agree("vocab", vocab, "corpus")
        context = self.seq_len + self.model.position_offset
        return replace(self.model, vocab=vocab, context=context, variant=self.variant)
