"""Counts what every preset costs anew, and writes the file that comes with the program: `python -m Testing.costs`."""

from __future__ import annotations

from MaskSAMCore import cost, presets
from MaskSAMCore.resources import resource


def main() -> None:
    """Write Resources/Presets/costs.json."""
    models = [presets.get(name).model for name in presets.names()]
    found = {cost.key(model): model for model in models}
    path = resource(*cost.KEPT)
    path.parent.mkdir(exist_ok=True)
    path.write_text(cost.as_text({name: cost.count(model) for name, model in found.items()}), encoding="utf-8")


if __name__ == "__main__":
    main()
