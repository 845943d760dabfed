"""The resampling walk of RePaint: the order in which a chain visits the noise levels. Plain Python.

Positions are indices into a ladder of inference steps: 0 is the cleanest, and T-1 the noisiest. diffusers
and the official code use the same walk, but read it differently. In the official code a position is the
level at which the sample *is*. In diffusers it is the step being *made*, after which the sample is one
level lower. In diffusers, jumps therefore start one level lower, and the last of them starts at the clean
image.
"""

from collections.abc import Sequence


def resampling_walk(
    num_inference_steps: int,
    jumps: Sequence[tuple[int, int]],
    n_sample: int = 1,
    start_resampling: int | None = None,
) -> list[int]:
    """Return the walk from T-1 down to 0, with jumps back up (RePaint, section 4.2 and appendix).

    Args:
        num_inference_steps: T.
        jumps: pairs of jump_length and jump_n_sample, the innermost jump first. Each multiple of
            jump_length below T - jump_length is an anchor. The walk reaches an anchor jump_n_sample times
            in all, and goes up jump_length positions each time but the last. A jump resets the anchors of
            all jumps inside it.
        n_sample: number of visits to every position below T-2 in a row. Between two visits the walk hops
            to the position above.
        start_resampling: no hop starts above this position, and no jump ends above it; None means T.

    Returns:
        The positions in the order of the walk.
    """
    start = num_inference_steps if start_resampling is None else start_resampling

    def anchors(length: int, count: int) -> dict[int, int]:
        return dict.fromkeys(range(0, num_inference_steps - length, length), count - 1)

    jumps_left = [anchors(*jump) for jump in jumps]
    walk = []
    position = num_inference_steps
    while position > 0:
        position -= 1
        walk.append(position)
        if position + 1 < num_inference_steps - 1 and position <= start:
            walk += [position + 1, position] * (n_sample - 1)
        for nesting, (length, _) in enumerate(jumps):
            if jumps_left[nesting].get(position, 0) > 0 and position + length <= start:
                jumps_left[nesting][position] -= 1
                walk += range(position + 1, position + length + 1)
                position += length
                jumps_left[:nesting] = [anchors(*jump) for jump in jumps[:nesting]]
    return walk


def diffusers_levels(walk: Sequence[int]) -> list[int]:
    """Return the levels of the sample if positions are steps; -1 is the clean image."""
    return [walk[0], *(position - 1 for position in walk)]


def paper_levels(walk: Sequence[int]) -> list[int]:
    """Return the levels of the sample if positions are levels; -1 is the clean image."""
    return [*walk, -1]
