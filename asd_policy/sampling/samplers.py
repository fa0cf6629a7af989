"""Samplers as values: what to run, printable, comparable, chosen by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from asd_policy.errors import SamplerError
from asd_policy.sampling.drafts import REVISITING, DraftKind

Verifier = Literal["reflection", "block"]
WindowRule = Literal["planned", "auto"]

_NAMES: dict[DraftKind, str] = {
    "frozen": "asd-paper",
    "drift": "speculative-frozen",
    "independent": "speculative-independent",
    "carry": "carry",
    "refine": "refine",
    "gain": "gain",
}


@dataclass(frozen=True)
class Sequential:
    """DDPM as it is: K sequential calls."""

    def __str__(self) -> str:
        """The label under which results are kept."""
        return "ddpm"


@dataclass(frozen=True)
class Speculative:
    """Draft a window, evaluate it in one call, keep the verified prefix: exactly the DDPM.

    Attributes:
        draft: What drafts are made of (see ``drafts``).
        window: θ, steps drafted ahead; None is unbounded, the paper's θ = ∞; ``planned`` chooses
            it for each round from the gain's errors, the same on every machine; ``auto`` chooses
            it so that time is least, from what calls cost on this machine.
        warm_start: Whether what is known before a chunk begins is its first draft: the previous
            chunk, shifted, or what a policy has learned to expect.
        verifier: ``reflection``: step by step, maximally coupled. ``block``: prefixes jointly (Soen
            et al. 2026, arXiv 2606.13426).
    """

    draft: DraftKind = "gain"
    window: int | WindowRule | None = 24
    warm_start: bool = False
    verifier: Verifier = "reflection"

    def __post_init__(self) -> None:
        """Refuse combinations that have no meaning."""
        if self.draft not in _NAMES or self.verifier not in get_args(Verifier):
            raise SamplerError(
                f"expected a draft of {sorted(_NAMES)} and a verifier of {get_args(Verifier)}, got "
                f"{self.draft!r} and {self.verifier!r}"
            )
        if isinstance(self.window, str):
            if self.window not in get_args(WindowRule):
                raise SamplerError(f"window: expected a number, inf, planned or auto; got {self}")
            if self.draft != "gain" or self.verifier != "reflection":
                raise SamplerError(
                    f"{self}: windows are planned from the errors of 'gain' drafts with the "
                    "reflection verifier; give another draft a number or inf, as in 'refine:24'"
                )
        elif self.window is not None and self.window < 1:
            raise SamplerError(f"window: expected 1 or more, or inf, got {self.window}")
        if self.verifier == "block" and self.draft == "refine":
            raise SamplerError(
                "block verification draws all later noise afresh, so that nothing is left for "
                "'refine' to visit again; use 'carry+block' or 'gain+block'"
            )
        if self.warm_start and self.draft not in (*REVISITING, "carry"):
            raise SamplerError(f"{_NAMES[self.draft]!r} has no warm start")

    @property
    def uses_calibration(self) -> bool:
        """Whether it drafts by what was learned of the policy: its gain, or what to expect."""
        return self.draft == "gain" or self.warm_start

    @property
    def uses_draft_model(self) -> bool:
        """Whether it drafts by a second network."""
        return self.draft == "independent"

    def __str__(self) -> str:
        """The label under which results are kept, e.g. ``refine:24`` or ``asd``."""
        name = _NAMES[self.draft]
        if self.warm_start:
            name = "asd" if self.draft == "gain" else f"{name}+warm"
        if self.verifier == "block":
            name += "+block"
        if self.window == "planned":
            return name
        return f"{name}:{'inf' if self.window is None else self.window}"


@dataclass(frozen=True)
class Ddim:
    """Deterministic DDIM (Song et al. 2021). Not DDPM's distribution.

    Attributes:
        num_steps: Network calls.
    """

    num_steps: int = 10

    def __str__(self) -> str:
        """The label under which results are kept."""
        return f"ddim:{self.num_steps}"


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022). Not DDPM's distribution.

    Attributes:
        num_steps: Network calls.
    """

    num_steps: int = 10

    def __str__(self) -> str:
        """The label under which results are kept."""
        return f"dpm-solver++:{self.num_steps}"


@dataclass(frozen=True)
class Paradigms:
    """Picard iteration in a sliding window (Shih et al. 2023). Close to DDPM, not exact.

    Attributes:
        window: Steps iterated in parallel.
        tolerance: Largest error of a step, in units of its noise, that counts as converged.
    """

    window: int = 20
    tolerance: float = 0.1

    def __str__(self) -> str:
        """The label under which results are kept."""
        return f"paradigms:{self.window}"


Sampler = Sequential | Speculative | Ddim | DpmSolver | Paradigms

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sequential(),
    "asd": Speculative("gain", "planned", warm_start=True),
    "asd-paper": Speculative("frozen", 24),
    "speculative-frozen": Speculative("drift", 24),
    "speculative-independent": Speculative("independent", 24),
    "carry": Speculative("carry", 24),
    "refine": Speculative("refine", 24),
    "gain": Speculative("gain", "planned"),
    "ddim": Ddim(),
    "dpm-solver++": DpmSolver(),
    "paradigms": Paradigms(),
}


def is_exact(sampler: Sampler) -> bool:
    """Whether a sampler keeps DDPM's distribution."""
    return isinstance(sampler, (Sequential, Speculative))


def parse_sampler(text: str | Sampler) -> Sampler:
    """A sampler from ``name``, ``name:window`` or ``name+option:window``.

    As in ``asd``, ``asd:48``, ``asd:auto``, ``asd-paper:8``, ``refine:inf``, ``refine+warm:24``,
    ``carry+block:24``, ``ddim:10``.

    Raises:
        SamplerError: If the name is unknown, or has no such window or option.
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"([a-z-]+(?:\+\+)?)((?:\+(?:warm|block))*)(?::(\d+|[a-z]+))?", text)
    if match is None or match[1] not in SAMPLERS:
        raise SamplerError(
            f"unknown sampler {text!r}; expected one of {sorted(SAMPLERS)}, with ':window' (a "
            "number or inf; for asd planned or auto, too) where it has one, as in 'asd-paper:24'"
        )
    sampler = SAMPLERS[match[1]]
    options = match[2].split("+")[1:]
    number = match[3]
    if isinstance(sampler, Speculative):
        if number is not None:
            window = None if number == "inf" else int(number) if number.isdigit() else number
            sampler = replace(sampler, window=window)  # type: ignore[arg-type]
        elif options and sampler.window == "planned" and "block" in options:
            sampler = replace(sampler, window=24)
        if "block" in options:
            sampler = replace(sampler, verifier="block")
        return replace(sampler, warm_start=True) if "warm" in options else sampler
    if options:
        raise SamplerError(f"{match[1]!r} has no options; got {text!r}")
    if number is None:
        return sampler
    if isinstance(sampler, Sequential) or not number.isdigit() or int(number) < 1:
        raise SamplerError(f"{match[1]!r} has no such window or number of steps; got {text!r}")
    if isinstance(sampler, Paradigms):
        return replace(sampler, window=int(number))
    return replace(sampler, num_steps=int(number))
