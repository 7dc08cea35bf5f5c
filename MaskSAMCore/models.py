"""`masksam models`: lists, shows, fetches, imports, removes and checks models and base weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import EXIT_FAILED, command_parser, run
from MaskSAMCore.config.describe import network_description

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

MIB = 1 << 20
GIGA = 1e9


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("models", "List, fetch, check and remove models and base weights.")
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="models and base weights, and whether they are on this computer")
    show = actions.add_parser("show", help="a model's card, or where base weights come from")
    show.add_argument("name", metavar="NAME", help="a model's name or folder, or base weights")
    show.add_argument("--json", action="store_true", help="print the whole card as JSON")
    fetch = actions.add_parser("fetch", help="bring base weights to this computer (hash-checked)")
    fetch.add_argument("name", metavar="NAME", help="mobile, vit_b, vit_l or vit_h")
    load = actions.add_parser("import", help="take in base weights, a model folder or a .zip of one")
    load.add_argument("file", metavar="FILE", type=Path)
    load.add_argument("--overwrite", action="store_true", help="replace a model of the same name")
    remove = actions.add_parser("remove", help="delete base weights or a model of yours")
    remove.add_argument("name", metavar="NAME")
    actions.add_parser("verify", help="check every file's hash and every card; exit 1 on damage")
    presets = actions.add_parser(
        "presets", help="named configurations: what each switches, its size, cost and published score"
    )
    presets.add_argument("name", metavar="NAME", nargs="?", help="print this one in full, as JSON")
    actions.add_parser("audit", help="count parameters and compare them with the papers' numbers")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(argv)
    return run(lambda: ACTIONS[options.action](options))


def _list(options: argparse.Namespace) -> int:
    from MaskSAMCore.zoo import base_weights, installed

    print("Models")
    models = installed.installed_models()
    width = max((len(m.name) for m in models), default=0)
    for model in models:
        if model.card is None:
            print(f"  {model.name:{width}}  {model.origin:7}  DAMAGED: {model.problem}")
            continue
        card = model.card
        names = ", ".join(label.name for label in card.labels.labels)
        licence = _short(card.licence) or "no licence stated"
        print(f"  {model.name:{width}}  {model.origin:7}  {card.modality or '?'}  {names}  ({licence})")
    if not models:
        print("  none; make one with `train` or `teach`")
    print("Base weights")
    for base in base_weights.BASES.values():
        print(f"  {base.name:6}  {base.size / MIB:6.0f} MiB  {base.licence}  {_where(base.name)}")
    return 0


def _short(licence: str) -> str:
    """A licence without its explanations and citations, which `models show` prints."""
    return licence.partition(": ")[0].partition(". ")[0]


def _where(name: str) -> str:
    from MaskSAMCore.errors import ModelError
    from MaskSAMCore.zoo import base_weights

    try:
        return str(base_weights.find_base(name))
    except ModelError:
        return "not here; downloaded when first needed"


def _show(options: argparse.Namespace) -> int:
    from MaskSAMCore.config.serialize import to_dict
    from MaskSAMCore.zoo import base_weights, installed, model_folder

    if options.name in base_weights.BASES:
        base = base_weights.BASES[options.name]
        print(f"{base.name}: {base.file}, {base.size} bytes, {base.licence}\nsha256 {base.sha256}")
        for source in base.sources:
            print(f"from {source}")
        print(f"here: {_where(base.name)}")
        return 0
    folder = installed.find_model(options.name)
    card = model_folder.load_card(folder)
    if options.json:
        print(json.dumps(to_dict(card), indent=2, ensure_ascii=False))
    else:
        print("\n".join(card_lines(folder, card)))
    return 0


def card_lines(folder: Path, card: ModelCard) -> list[str]:
    """What people want to know of a model: what it finds and is made of, its accuracy, licence and limits."""
    lines = [f"{card.name}  ({folder})", *([card.description] if card.description else [])]
    lines += ["", f"Modality:   {card.modality or 'not stated'}"]
    lines += [f"Structures: {', '.join(label.name for label in card.labels.labels)}"]
    lines += [network_description(card.config.model)]
    lines += [f"Licence:    {card.licence or 'not stated'}"]
    for command, rows in card.metrics.items():
        dice = {name: row["dice"] for name, row in rows.items() if isinstance(row.get("dice"), float)}
        if dice:
            lines += ["", f"Dice by `{command}`:", *(f"  {name:30} {value:.3f}" for name, value in dice.items())]
    return [*lines, *(["", f"Limits: {card.limits}"] if card.limits else [])]


def _fetch(options: argparse.Namespace) -> int:
    from MaskSAMCore.progress import terminal_progress
    from MaskSAMCore.zoo import base_weights

    with terminal_progress() as progress:
        path = base_weights.fetch_base(options.name, progress=progress)
    print(path)
    return 0


def _import(options: argparse.Namespace) -> int:
    from MaskSAMCore.zoo import base_weights, installed

    file = options.file
    is_base = file.is_file() and file.suffix.lower() in base_weights.SUFFIXES
    name = base_weights.import_base(file) if is_base else installed.import_model(file, overwrite=options.overwrite)
    print(f"imported {name}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from MaskSAMCore.zoo import base_weights, installed

    path = (
        base_weights.remove_base(options.name)
        if options.name in base_weights.BASES
        else installed.remove_model(options.name)
    )
    print(f"removed {path}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from MaskSAMCore.errors import MaskSAMError
    from MaskSAMCore.zoo import base_weights, installed, model_folder

    checks: list[tuple[str, Callable[[], object]]] = [
        *((model.name, partial(model_folder.verify_model, model.path)) for model in installed.installed_models()),
        *((name, partial(base_weights.verify_base, name)) for name in base_weights.BASES),
    ]
    damaged = 0
    for name, check in checks:
        try:
            state = "ok" if check() else "absent"
        except MaskSAMError as error:
            damaged += 1
            name, state = str(error), "DAMAGED"
        print(f"{state:8} {name}")
    return EXIT_FAILED if damaged else 0


def _presets(options: argparse.Namespace) -> int:
    from MaskSAMCore.config import presets
    from MaskSAMCore.config.serialize import to_dict

    if options.name:
        print(json.dumps(to_dict(presets.get(options.name)), indent=2))
        return 0
    print("\n".join(preset_lines()))
    return 0


def preset_lines() -> list[str]:
    """Every preset and row: what it switches, parameters, GFLOP per slice, the published score.

    Costs that did not come with the program are counted, which takes seconds each.
    """
    from MaskSAMCore.config import presets
    from MaskSAMCore.zoo import cost

    rows = [("preset", "trained", "all", "GFLOP/slice", "published", "what it switches")]
    kept = cost.kept()
    for name in presets.names():
        preset = presets.describe(name)
        model = preset.config.model
        counted = kept.get(cost.key(model)) or cost.count(model)
        score = f"{preset.benchmark} {preset.score:.2f} %" if preset.score is not None else ""
        sizes = (f"{counted.trained:,}", f"{counted.total:,}", f"{counted.flop / GIGA:,.1f}")
        rows.append((name, *sizes, score, preset.about))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
        f"{row[4]:<{widths[4]}}  {row[5]}"
        for row in rows
    ]


def _audit(options: argparse.Namespace) -> int:
    from MaskSAMCore.errors import MaskSAMError, ModelError
    from MaskSAMCore.zoo.audit import audit_table

    try:
        print(audit_table())
    except ModelError as error:
        raise MaskSAMError("the audit failed", why=str(error)) from error
    return 0


ACTIONS = {
    "list": _list,
    "show": _show,
    "fetch": _fetch,
    "import": _import,
    "remove": _remove,
    "verify": _verify,
    "presets": _presets,
    "audit": _audit,
}

if __name__ == "__main__":
    sys.exit(main())
