"""Which groups are of one size: more bits per image are an easier task, so across sizes nothing is tested."""

from __future__ import annotations

from collections.abc import Sequence

from vqbench.facts import Facts
from vqbench.reports.experiment import Group

TOLERANCE = 0.05
"""How much more than the first of a size takes belongs to it: what one method reaches when asked for another's bits."""
RULE = (
    f"rows are sorted by bits per image, and a size begins where one takes more than {100 * TOLERANCE:.0f} % above the "
    "first of the size before; between sizes nothing is tested, for more bits are an easier task"
)


def sizes(groups: Sequence[Group]) -> tuple[tuple[Group, ...], ...]:
    """Groups by what may be tested against each other, the smaller size first; without a score they are of none.

    All are together where all were trained here, whatever they take. Else as `RULE` says; a group whose bits are not
    known is alone.
    """
    finished = [group for group in groups if group.finished]
    if all(group.is_trained_here for group in finished):
        return (tuple(groups),)
    known = [(bits, group) for group in finished if (bits := bits_of(group))]
    found: list[list[Group]] = []
    most = 0.0
    for bits, group in sorted(known, key=lambda place: place[0]):
        if bits > most:
            found.append([])
            most = (1 + TOLERANCE) * bits
        found[-1].append(group)
    found += [[group] for group in finished if not bits_of(group)]
    return tuple(map(tuple, found)) if len(found) > 1 else (tuple(groups),)


def bits_of(group: Group) -> float | None:
    """Bits of one image's tokens, their mean where images keep their own sizes; None where they are not known."""
    known = group.summary.estimates
    found = known.get("bits_per_image") or known.get("mean_bits_per_image")
    return found.mean if found else None


def bits_text(groups: Sequence[Group]) -> str:
    """ "2,304 bits/image", or from where to where of several groups; "unknown bits/image"."""
    known = [f"{bits:,.0f}" for bits in sorted(filter(None, map(bits_of, groups)))]
    return f"{' to '.join(dict.fromkeys((known[0], known[-1])))} bits/image" if known else "unknown bits/image"


def why_alone(group: Group) -> str:
    """Why a group that is of a size by itself is not tested."""
    if bits_of(group):
        return "no other row is of its size"
    of_images = not group.is_trained_here and Facts.of(group.spec["pretrained"]).codebook_size is None
    return "it has no codes" if of_images else "its bits per image are not known"
