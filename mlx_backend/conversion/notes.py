"""Notes to a plan: what users should know about the chosen formats, a line each. Pure; no MLX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mlx_backend.conversion.options import has_few_bits
from mlx_backend.conversion.recipes import Candidate
from mlx_backend.conversion.spec import Spec


def kept_by_plain(candidates: Iterable[Candidate], asked: Spec) -> Iterator[str]:
    """Yield what a conversion with `asked` for every weight leaves as it is, as mlx_lm.convert does, and why."""
    own: list[str] = []
    widths: Counter[int] = Counter()
    for candidate in candidates:
        if candidate.own is False:
            own.append(candidate.path)
        elif not (candidate.own if isinstance(candidate.own, Spec) else asked).divides(candidate.width):
            widths[candidate.width] += 1
    if widths:
        rows = " and ".join(f"{width:,}" for width in sorted(widths))
        yield (
            f"{_weights(widths.total())} as {'it is' if widths.total() == 1 else 'they are'}, as with mlx_lm.convert: "
            f"groups of {asked.group_size} do not divide rows of {rows}; a smaller --group-size, a recipe or --fit "
            "quantizes them"
        )
    if own:
        yield f"{_weights(len(own))} unquantized because the model's own code in mlx-lm asks for it ({own[0]})"


def few_bits(chosen: Mapping[str, Spec | None]) -> Iterator[str]:
    """Yield formats without measurements that have fewer bits than weights of their kind usually need."""
    found = [path for path, spec in chosen.items() if has_few_bits(path, spec)]
    if found:
        some = "1 weight has" if len(found) == 1 else f"{len(found)} weights have"
        yield (
            f"{some} fewer bits than is usual for their kind, since the size leaves no more ({found[0]}): let "
            "--calibrate measure what each needs, and --quality what comes of it"
        )


def _weights(number: int) -> str:
    return "1 weight stays" if number == 1 else f"{number} weights stay"
