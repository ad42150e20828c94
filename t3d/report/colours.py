"""The colours of denoising steps, in terminals and pages."""

from __future__ import annotations

RGB = tuple[int, int, int]

# From early (dark) to late (light); lightness rises evenly, so it also reads without colour.
_RAMP: tuple[RGB, ...] = (
    (59, 47, 153),
    (66, 146, 198),
    (48, 170, 158),
    (150, 211, 128),
    (245, 230, 120),
)


def _luminance(colour: RGB) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def step_colours(step: int, num_steps: int) -> tuple[str, str]:
    """(background, text) of a step as hex, the text black or white, whichever reads better.

    The better of the two has a contrast of at least sqrt(21) = 4.58 on any background.
    """
    place = step / max(num_steps - 1, 1) * (len(_RAMP) - 1)
    left = min(int(place), len(_RAMP) - 2)
    share = place - left
    mixed = [round(a + (b - a) * share) for a, b in zip(_RAMP[left], _RAMP[left + 1], strict=True)]
    light = _luminance((mixed[0], mixed[1], mixed[2]))
    text = "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
    return "#" + "".join(f"{value:02x}" for value in mixed), text
