"""Counts what every preset costs anew, and writes the file that comes with the program: `python -m Testing.costs`."""

from __future__ import annotations

from MaskSAMCore.config import presets
from MaskSAMCore.config.resources import resource
from MaskSAMCore.zoo import cost


def main() -> None:
    """Write Resources/Presets/costs.json."""
    models = [presets.get(name).model for name in presets.names()]
    found = {cost.key(model): model for model in models}
    path = resource(*cost.KEPT)
    path.parent.mkdir(exist_ok=True)
    path.write_text(cost.as_text({name: cost.count(model) for name, model in found.items()}), encoding="utf-8")


if __name__ == "__main__":
    main()
