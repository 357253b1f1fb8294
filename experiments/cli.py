"""The command `headjax`, also `python -m headjax`.

    headjax run --model gpt2 --analyses head_ablation --prompts ioi --positions all
    headjax plan demo --mesh data:8 --device_memory 80 --rate 400
    headjax draw out/demo --formats svg --colors cividis
    headjax report out/base out/finetuned --to both.html
    headjax convert --model gpt2 --out checkpoints/gpt2
    headjax verify gpt2 --prompts ioi
    headjax list analyses

What follows `run` and `plan` is a config, a file or the name of one in experiments/configs (without one,
`relation_scores`), and fields of it, as `--FIELD VALUE` or `--FIELD=VALUE`. `draw` takes the report's fields;
`report` makes one page of several runs.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import headjax
from headjax.errors import InputError, run_main

LISTS = ("models", "relations", "configs", "analyses", "circuits", "published")


def make_parser() -> argparse.ArgumentParser:
    """Imports nothing that takes time: help and mistyped commands are answered at once."""
    parser = argparse.ArgumentParser(
        prog="headjax",
        description="What each attention head of a language model does, and how much the model needs it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"headjax {headjax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in (
        ("run", "Models to score grids, tables and figures."),
        ("plan", "What a run would cost, and whether it fits; no device, no weights."),
    ):
        command = commands.add_parser(
            name, help=about, description=about, epilog="Fields: headjax list analyses", allow_abbrev=False
        )
        command.add_argument(
            "config", nargs="?", default="relation_scores", help="A config, by file or name."
        )
        command.add_argument("--noprogress", action="store_true", help="No progress bars.")
        command.add_argument("fields", nargs=argparse.REMAINDER, help="--FIELD VALUE ...")
    draw = commands.add_parser("draw", help="The figures of a finished run again.", allow_abbrev=False)
    draw.add_argument("out", help="The run's directory.")
    draw.add_argument("fields", nargs=argparse.REMAINDER, help="--FIELD VALUE ... of the report.")
    report = commands.add_parser(
        "report", help="One page of finished runs, side by side.", allow_abbrev=False
    )
    report.add_argument("out", nargs="+", help="The runs' directories.")
    report.add_argument(
        "--to", help="The file to write; of one run its own report.html, of several ./report.html."
    )
    convert = commands.add_parser("convert", help="A model into headjax's own format.", allow_abbrev=False)
    convert.add_argument("--model", required=True, help="Alias, Hugging Face id or directory.")
    convert.add_argument("--out", required=True, help="Directory to write.")
    convert.add_argument("--dtype", help="float32, bfloat16 or float16; as stored unless given.")
    convert.add_argument("--ignore_fields", default="", help="Fields of config.json to treat as absent.")
    verify = commands.add_parser(
        "verify", help="A model's numbers against plain torch code.", allow_abbrev=False
    )
    verify.add_argument("model", help="Alias, Hugging Face id or directory.")
    verify.add_argument("fields", nargs=argparse.REMAINDER, help="--FIELD VALUE ... of a run.")
    lists = commands.add_parser("list", help="What there is by name.", allow_abbrev=False)
    lists.add_argument("what", nargs="?", choices=LISTS, help="Everything unless it is said.")
    return parser


def list_names(what: str) -> Iterator[str]:
    """The lines of one list."""
    if what == "models":
        from experiments.models import BESIDE
        from headjax.zoo import MODELS

        yield from (f"{alias:24} {entry.id}" for alias, entry in MODELS.items())
        yield from (f"{name:24} comes along" for name in BESIDE)
    if what == "relations":
        from headjax.data.relations import load_relations

        for relation in load_relations():
            yield f"{relation.id:24} {relation.category:12} {len(relation.pairs)} pairs"
    if what == "configs":
        from experiments.config import CONFIGS

        for file in sorted(CONFIGS.rglob("[a-z]*.py")):
            about = file.read_text("utf-8").removeprefix('"""').partition("\n")[0]
            yield f"{file.relative_to(CONFIGS).with_suffix('').as_posix():36} {about}"
    if what == "analyses":
        import dataclasses

        from experiments.config import SECTIONS
        from headjax.analyses.registry import ANALYSES

        for kind, analysis in {**ANALYSES, **SECTIONS}.items():
            yield f"{kind}: {(analysis.__doc__ or '').partition(chr(10))[0]}"
            for field in dataclasses.fields(analysis):
                yield f"    --{field.name} (default {_default(field.default)})"
    if what == "circuits":
        from headjax.circuits.published import CIRCUITS

        yield from (f"{name:24} {circuit.model}: {circuit.citation}" for name, circuit in CIRCUITS.items())
    if what == "published":
        from experiments.published import COMPARISONS

        yield from COMPARISONS


def _default(value: Any) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value).lower()


def command(arguments: argparse.Namespace) -> None:
    """Does what was asked; what it needs is imported here."""
    if arguments.command in ("run", "plan"):
        from experiments.config import split_fields
        from experiments.run import execute

        fields, planned = split_fields(arguments.fields), arguments.command == "plan"
        execute(arguments.config, fields, planned, not arguments.noprogress)
    elif arguments.command == "draw":
        from experiments import draw

        draw.main(["draw", arguments.out, *arguments.fields])
    elif arguments.command == "report":
        from experiments import page

        page.main(["report", *arguments.out, *(("--to", arguments.to) if arguments.to else ())])
    elif arguments.command == "convert":
        from checkpoints_convert import convert

        ignored = [name for name in arguments.ignore_fields.split(",") if name]
        convert(arguments.model, arguments.out, arguments.dtype, ignore_fields=ignored)
        print(f"wrote {arguments.out}")
    elif arguments.command == "verify":
        from experiments.config import load_config, split_fields
        from experiments.run import open_model

        if importlib.util.find_spec("torch") is None:
            raise InputError("headjax verify needs PyTorch, which is not installed: pip install torch")
        from experiments.verify import comparison_table, verify

        config = load_config("relation_scores", {"model": arguments.model, **split_fields(arguments.fields)})
        compared = verify(open_model(arguments.model, config))
        print(comparison_table(compared))
        if not all(one.agrees for one in compared):
            sys.exit(1)
    else:
        for what in (arguments.what,) if arguments.what else LISTS:
            print(f"{what}:")
            for line in list_names(what):
                print(f"  {line}")


def main() -> None:
    """The console script."""
    argv = sys.argv[1:]
    if argv[:1] in (["run"], ["plan"]) and not {"-h", "--help"} & set(argv[1:2]):
        # argparse takes no option that it does not know before the first positional argument, nor one that it
        # knows after it: in the order that it takes.
        given = [word for word in argv[1:] if word != "--noprogress"]
        config = given.pop(0) if given and not given[0].startswith("--") else "relation_scores"
        argv = [argv[0], *["--noprogress"] * ("--noprogress" in argv), config, *given]
    arguments = make_parser().parse_args(argv)
    sys.argv = sys.argv[:1]  # absl, which ends the process, has no flags of its own here
    run_main(
        lambda _: command(arguments),
        stopped="what is finished is kept: start the same run again to go on",
    )


if __name__ == "__main__":
    main()
