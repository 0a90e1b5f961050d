"""The list of the kinds of heads, and nothing that imports torch: the command line's help reads it.

``linear``'s file is ``linear.py`` here, and so on: all that a kind is, as :class:`pipeline.heads.kinds.kind.Kind` says.
"""

from __future__ import annotations

# Each kind's name, and the settings of MinibatchConfig that say something to it but not to every kind.
KINDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "mlp": ("width", "depth", "dropout"),
    "cosine": ("scale",),
}


def readers(setting: str) -> tuple[str, ...]:
    """The kinds that a setting is for, where it is not for every kind."""
    return tuple(kind for kind, own in KINDS.items() if setting in own)
