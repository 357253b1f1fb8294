"""The command line of the converter."""

from pathlib import Path

from absl import flags

from checkpoints_convert.convert import DTYPES, convert
from headjax.errors import run_main
from headjax.parameters.converted import read_provenance

MODEL = flags.DEFINE_string("model", None, "Alias, Hugging Face id or directory.", required=True)
OUT = flags.DEFINE_string(
    "out", None, "Directory to write; a converted checkpoint there is replaced.", required=True
)
IGNORE_FIELDS = flags.DEFINE_list(
    "ignore_fields", [], "Fields of config.json to treat as absent; what was ignored is recorded."
)
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Dtype to write; as stored unless given.")


def main(_argv: list[str]) -> None:
    convert(MODEL.value, OUT.value, DTYPE.value, ignore_fields=IGNORE_FIELDS.value)
    provenance = read_provenance(Path(OUT.value))
    for kind in ("ignored_fields", "ignored_tensors"):
        if provenance[kind]:
            print(f"{kind.replace('_', ' ')}: {', '.join(provenance[kind])}")
    print(f"wrote {OUT.value}")


if __name__ == "__main__":
    run_main(main)
