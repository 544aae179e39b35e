"""Bring a model under a compression scheme."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import (
    CACHE,
    PRODUCTS,
    Inputs,
    inputs,
    inputs_of_layer,
    limits,
    rotation,
)
from sysout_jax.analysis.compress.compressed import Compressed, losses
from sysout_jax.analysis.compress.rounding import Basis, Evict, RoundInputs, round_weights
from sysout_jax.analysis.compress.schemes import LEARNING, Pruning, Rounding, Scheme, bits
from sysout_jax.analysis.locate.scan import for_length
from sysout_jax.analysis.locate.weights import projection
from sysout_jax.core import compensate, prune
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import precisely
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, stack_blocks, unstack_blocks
from sysout_jax.model.stream import entering, through
from sysout_jax.model.taps import Edit

ALPHA = 0.5  # of SmoothQuant, its authors' choice (Xiao et al. 2022, section 4)
BEHIND_NORMS = ("attn_norm", "mlp_norm")  # what SmoothQuant rescales: the rest of the scale goes
#   into the norm before; mixes of values and neurons it leaves (Xiao et al. 2022, section 4)
Blocks = list[dict[str, Any]]
Place = tuple[str, int, str, str]  # of a matrix: the tap of its inputs, layer, module, name


@dataclass(frozen=True)
class Compressor:
    """A model, and the calibration text that schemes may learn from.

    Of a mixture every expert's matrix is one of its own, and so are the inputs of the experts that
    a token goes to; the router's weights stay. What it reads is the input of the MLP, so that
    rounding `mlp_norm` rounds that too, and may send a token to other experts.

    sites: taps whose products are compressed, keys of `calibration.PRODUCTS`.
    alpha: of SmoothQuant.
    """

    config: ModelConfig
    params: Params
    calibration: Int[np.ndarray, "B S"]
    sites: tuple[str, ...] = tuple(PRODUCTS)
    alpha: float = ALPHA
    batch: int = 8
    _known: dict[tuple[bool, int], dict[str, Inputs]] = field(default_factory=dict, init=False)

    def known(self, gram: bool = False, keep: int = 0) -> dict[str, Inputs]:
        """The inputs of the products, measured when they are asked for first."""
        gram = gram or (True, keep) in self._known
        if (gram, keep) not in self._known:
            tokens = self.calibration[:, :-1]
            found = inputs(self.config, self.params, tokens, self.sites, gram, keep)
            self._known[gram, keep] = found
        return self._known[gram, keep]

    def compress(
        self,
        scheme: Scheme,
        boosted: Mapping[tuple[str, int], Rounding] | None = None,
        only: Sequence[str] | None = None,
    ) -> Compressed:
        """The model under a scheme.

        Args:
          scheme: of all matrices.
          boosted: (matrix, layer) -> how its weights are rounded instead.
          only: the matrices that are rounded; None: all.

        Raises:
          InputError: `check_scheme`; or all tokens of the calibration text stay as they are, where
            ranges are learned from it.
        """
        check_scheme(self.config, scheme, self.sites)
        blocks = self._blocks()
        if isinstance(scheme, Pruning):
            self._prune(scheme, blocks)
            return Compressed(self._joined(blocks), {}, self._zeros(blocks))
        self._check_keep(scheme)
        bases = {tap: self._basis(scheme, tap, blocks) for tap in self.sites}
        exact = self._exact(scheme)
        if scheme.weights is not None:
            for (tap, layer, module, name), of in self._learning(scheme, blocks):
                if only is not None and name not in only:
                    continue
                basis, mine = bases[tap].at(layer), (boosted or {}).get((name, layer), scheme)
                change = partial(round_weights, mine, basis=basis)
                if tap in exact:
                    change = partial(change, exact=exact[tap][layer])
                if of is not None:
                    assert of.gram is not None  # as it was asked for
                    change = partial(change, gram=_f32(of.gram), magnitude=_f32(of.mean))
                changed = self._each(blocks, layer, module, name, change)
                self._put(blocks, layer, module, name, changed)
        edits = self._edits(scheme, bases, exact)
        return Compressed(self._joined(blocks), edits, bits=self._bits(scheme, exact, blocks))

    def _check_keep(self, how: Rounding) -> None:
        tokens = self.calibration.shape[1] - 1
        if how.ranged and how.keep >= tokens:
            raise InputError(
                "methods", None, f"calibration rows of more than {how.keep} tokens",
                f"keep{how.keep} leaves none of {tokens}",
            )  # fmt: skip

    def _exact(self, how: Rounding) -> dict[str, Bool[Array, "L I"]]:
        """The inputs that stay as they are: of columns that reach a bound in calibration text.

        Source: Dettmers et al. 2022 (arXiv:2208.07339), section 3.2, who look at each batch.
        """
        if how.split is None:
            return {}
        known = self.known(keep=how.keep)
        return {tap: jnp.asarray(known[tap].peak >= how.split) for tap in self.sites}

    def _bits(
        self, how: Rounding, exact: Mapping[str, Bool[Array, "L I"]], blocks: Blocks
    ) -> float | None:
        rounded = bits(how)
        if rounded is None or not exact:
            return None
        found = [
            (np.size(blocks[layer][module][name]), float(jnp.mean(exact[tap][layer])))
            for tap, layer, module, name in self._places(blocks)
        ]
        of = [rounded + (16.0 - rounded) * share for _, share in found]
        return float(np.average(of, weights=[size for size, _ in found]))

    def _edits(
        self, how: Rounding, bases: Mapping[str, Basis], exact: Mapping[str, Bool[Array, "L I"]]
    ) -> dict[str, Edit]:
        edits = {}
        if how.activations is not None:
            fixed = self._ranges(how, bases, exact)
            for tap, basis in bases.items():
                per = how.inputs_per or ("vector" if how.per == "group" else how.per)
                of_experts = self.config.experts and tap == "down_in"
                parts = self.config.experts_per_token if of_experts else 1
                rounded = RoundInputs(how.activations, per, how.zero_point, parts, how.keep)
                edits[tap] = Edit(rounded, basis, fixed.get(tap), exact.get(tap))
        if how.cache is not None:
            size = self.config.sizes
            for tap in CACHE:
                rounded = RoundInputs(
                    how.cache, "vector", how.zero_point, size["K"], how.keep,
                    by_channel=how.by_channel and tap == "key",
                )  # fmt: skip
                turned = rotation(tap, size["H"]) if how.basis == "rotate" else None
                edits[tap] = Edit(rounded, Basis(rotation=turned), None, None)
        if how.window is not None:
            edits["attn_logits"] = Edit(Evict(how.keep, how.window))
        return edits

    def _ranges(
        self, how: Rounding, bases: Mapping[str, Basis], exact: Mapping[str, Bool[Array, "L I"]]
    ) -> dict[str, Float[Array, "L 2"]]:
        """The static ranges of the inputs in their bases, if they are to be static."""
        if how.ranges is None:
            return {}
        if how.ranges == "minmax" and how.basis != "rotate":
            found = {}
            for tap, basis in bases.items():
                scales = 1.0 if basis.scales is None else np.asarray(basis.scales)
                of, counted = self.known(keep=how.keep)[tap], ~np.asarray(exact.get(tap, False))
                low, high = (np.where(counted, x, 0.0) for x in (of.low, of.high))
                ends = (low / scales).min(-1), (high / scales).max(-1)
                found[tap] = np.stack(ends, axis=-1)
        else:
            tokens = self.calibration[:, :-1]
            found = limits(self.config, self.params, tokens, how, tuple(bases), self.batch)
        return {tap: _f32(each) for tap, each in found.items()}

    def _basis(self, how: Rounding, tap: str, blocks: Blocks) -> Basis:
        if how.basis == "given" or (how.basis == "smooth" and tap not in BEHIND_NORMS):
            return Basis()
        if how.basis == "rotate":
            return Basis(rotation=rotation(tap, wide(self.config, tap)))
        matrices = [
            [self._matrix(blocks, layer, *p) for p in PRODUCTS[tap] if p[1] in block[p[0]]]
            for layer, block in enumerate(blocks)
        ]
        peaks = [jnp.max(jnp.abs(jnp.concatenate(row, axis=1)), axis=1) for row in matrices]
        scales = jax.vmap(partial(compensate.smooth_scales, alpha=self.alpha))
        known = self.known(keep=how.keep)[tap]
        return Basis(scales=scales(_f32(known.peak), jnp.stack(peaks)))

    def _prune(self, how: Pruning, blocks: Blocks) -> None:
        places = self._places(blocks)
        if how.criterion == "global":
            assert isinstance(how.sparsity, float)  # as its name has
            weights = [self._matrix(blocks, *place[1:]) for place in places]
            masks = prune.global_magnitude_masks(weights, how.sparsity)
            for place, w, mask in zip(places, weights, masks, strict=True):
                self._put(blocks, *place[1:], jnp.where(mask, w, 0.0))
            return
        shares = self._shares(how, blocks)
        for (_, layer, module, name), of in self._learning(how, blocks):
            gram = _f32(of.gram) if of and of.gram is not None and how.compensated else None
            square = _f32(of.square) if of else None
            change = partial(_pruned, shares[layer], gram=gram, square=square)
            changed = self._each(blocks, layer, module, name, change)
            self._put(blocks, layer, module, name, changed)

    def _shares(self, how: Pruning, blocks: Blocks) -> list[Pruning]:
        """How each layer is pruned."""
        if not how.by_layer:
            return [how] * len(blocks)
        assert isinstance(how.sparsity, float)  # as its name has
        scores: list[list[Array]] = [[] for _ in blocks]
        for tap, layer, module, name in self._places(blocks):
            norm = jnp.sqrt(_f32(self.known()[tap].square[layer]))
            w = self._matrix(blocks, layer, module, name)
            scores[layer].append(prune.wanda_score(w, norm))
        outliers = np.array([float(prune.outlier_share(of)) for of in scores])
        shares = prune.shares_by_layer(outliers, how.sparsity)
        return [replace(how, sparsity=float(share)) for share in shares]

    def _learning(self, how: Scheme, blocks: Blocks) -> Iterator[tuple[Place, Inputs | None]]:
        """Each place, by layer, and the inputs that its weights learn from, if they do.

        Where a scheme is sequential, these are the inputs behind the layers before as they have
        become when the layer's turn comes; otherwise those of the model as it was.
        """
        learns = how.compensated or (isinstance(how, Pruning) and how.criterion in LEARNING)
        if not how.sequential:
            known = self.known(how.compensated) if learns else {}
            for place in self._places(blocks):
                yield place, known[place[0]].of(place[1]) if learns else None
            return
        config = for_length(self.config, self.calibration.shape[1] - 1)
        rows = jnp.asarray(self.calibration[:, None, :-1])
        states = [entering(config, self.params, row) for row in rows]
        for layer, block in enumerate(blocks):
            params, only = {f"block_{layer}": block}, range(layer, layer + 1)
            known = inputs_of_layer(config, params, layer, states, self.sites, how.compensated)
            for place in self._places(blocks, only):
                yield place, known[place[0]].of(0)
            states = [through(config, params, x, only)[0] for x in states]

    def matrices(self) -> dict[str, list[Float[Array, "I O"]]]:
        """Matrix -> its weights in each layer, of those that are compressed."""
        blocks = self._blocks()
        found: dict[str, list[Float[Array, "I O"]]] = {}
        for _, layer, module, name in self._places(blocks):
            found.setdefault(name, []).append(self._matrix(blocks, layer, module, name))
        return found

    # ------------------------------------------------------------- the tree of parameters

    def _blocks(self) -> Blocks:
        unrolled = unstack_blocks(self.params) if "blocks" in self.params else self.params
        return [
            {module: dict(of) for module, of in unrolled[f"block_{layer}"].items()}
            for layer in range(self.config.layers)
        ]

    def _joined(self, blocks: Blocks) -> Params:
        unrolled = {f"block_{layer}": block for layer, block in enumerate(blocks)}
        rest = {name: of for name, of in self.params.items() if name not in {*unrolled, "blocks"}}
        tree = {**rest, **unrolled}
        return stack_blocks(tree) if "blocks" in self.params else tree

    def _places(self, blocks: Blocks, layers: Iterable[int] | None = None) -> list[Place]:
        """The matrices that are compressed, of some layers or all."""
        return [
            (tap, layer, module, name)
            for layer in (range(len(blocks)) if layers is None else layers)
            for tap in self.sites
            for module, name in PRODUCTS[tap]
            if name in blocks[layer][module]
        ]

    def _matrix(self, blocks: Blocks, layer: int, module: str, name: str) -> Float[Array, "I O"]:
        return projection(blocks[layer], module, name).astype(jnp.float32)

    def _experts(self, blocks: Blocks, layer: int, module: str, name: str) -> Float[Array, "E I O"]:
        """The matrix of every expert; of one where there is one for all tokens."""
        whole, of = self._matrix(blocks, layer, module, name), blocks[layer][module][name]
        return whole.reshape(len(of) if self.config.experts and module == "mlp" else 1, -1,
                             whole.shape[-1])  # fmt: skip

    def _each(
        self, blocks: Blocks, layer: int, module: str, name: str,
        change: Callable[[Float[Array, "I O"]], Float[Array, "I O"]],
    ) -> Float[Array, "E I O"]:  # fmt: skip
        """The matrix of every expert, changed."""
        return jnp.stack([change(w) for w in self._experts(blocks, layer, module, name)])

    def _put(self, blocks: Blocks, layer: int, module: str, name: str, w: Array) -> None:
        old = blocks[layer][module][name]
        blocks[layer][module][name] = w.reshape(old.shape).astype(old.dtype)

    def _zeros(self, blocks: Blocks) -> dict[str, np.ndarray]:
        zeros: dict[str, list[float]] = {}
        for _, layer, module, name in self._places(blocks):
            w = self._matrix(blocks, layer, module, name)
            zeros.setdefault(name, []).append(float(jnp.mean(w == 0.0)))
        return {name: np.array(shares) for name, shares in zeros.items()}


def added_losses(
    compressor: Compressor, methods: Iterable[str], rows: Int[np.ndarray, "B S"], skip: int = 0
) -> dict[str, float]:
    """Method -> what it adds to the mean loss of rows [B, S] beyond `skip`, nats a token.

    Raises:
      InputError: a method that `schemes.scheme` does not know, or `Compressor.compress` refuses.
    """

    def lost(found: Compressed) -> np.ndarray:
        return losses(compressor.config, found, rows, skip=skip)

    before, schemed = lost(Compressed(compressor.params)), schemes.scheme
    return {m: float((lost(compressor.compress(schemed(m))) - before).mean()) for m in methods}


def wide(config: ModelConfig, site: str) -> int:
    """I, the inputs of the products at a site."""
    size = config.sizes
    return {"attn_mix": size["N"] * size["H"], "down_in": size["F"]}.get(site, size["D"])


def check_scheme(config: ModelConfig, scheme: Scheme, sites: Sequence[str]) -> None:
    """Refuse a scheme that the model cannot have.

    Raises:
      InputError: the model is a mixture, the scheme learns from calibration text, which does not
        tell experts apart, and products of experts are among those that are compressed; or N:M
        with an M that does not divide their inputs.
    """
    of_experts = [site for site in sites if site in ("mlp_norm", "down_in")]
    if config.experts and scheme.calibrated and of_experts:
        raise InputError(
            "methods", None, "methods without calibration, or --sites=attn_norm,attn_mix",
            f"the inputs of the {config.experts} experts are not told apart in calibration text",
        )  # fmt: skip
    if isinstance(scheme, Pruning) and isinstance(scheme.sparsity, tuple):
        n, m = scheme.sparsity
        for site in sites:
            if wide(config, site) % m:
                why = f"{n}:{m} of the {wide(config, site)} inputs at {site}"
                raise InputError("methods", None, "N:M with an M that divides them", why)


def _f32(x: np.ndarray) -> Array:
    return jnp.asarray(x, jnp.float32)


@precisely
@partial(jax.jit, static_argnums=0)
def _pruned(
    how: Pruning, w: Float[Array, "I O"], gram: Array | None, square: Array | None
) -> Float[Array, "I O"]:
    if gram is not None:
        return prune.sparsegpt(w, gram, how.sparsity)
    score = jnp.abs(w) if square is None else prune.wanda_score(w, jnp.sqrt(square))
    if isinstance(how.sparsity, tuple):
        mask = prune.n_of_m_mask(score, *how.sparsity)
    elif how.criterion == "wanda":
        mask = prune.per_output_mask(score, how.sparsity)
    else:
        mask = prune.magnitude_mask(w, how.sparsity)
    return jnp.where(mask, w, 0.0)


def check_alpha(alpha: float) -> None:
    """Refuse a share of the scale that is none.

    Raises:
      InputError: it is not from 0 to 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InputError("alpha", alpha, "a number from 0 to 1")


def present(sites: Sequence[str]) -> tuple[str, ...]:
    """The sites of a `--sites` value.

    Raises:
      InputError: none, one twice, or one that is no input of a matrix product.
    """
    known = ", ".join(PRODUCTS)
    if not sites or len(set(sites)) < len(sites) or set(sites) - set(PRODUCTS):
        raise InputError("sites", ",".join(sites), f"some of {known}, none twice")
    return tuple(sites)
