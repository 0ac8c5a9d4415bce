"""What a help page shows: options in sections, those that matter first, all of them by `--help-all`, and examples."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
import typer.core

SHORT = 20  # options of its own: a command with no more of them has no --help-all, and its page shows all
OTHERS = "Options"
# Section of a settings model's options, in the order of the data's way; what is in none is the command's own.
SECTIONS = {
    "DataSettings": "Data",
    "GeneratorSettings": "Generator",
    "InvertSettings": "Stage 1 (invert)",
    "SampleSettings": "Stage 2 (sample)",
    "PromptSettings": "With --prompts",
    "TrainSettings": "Training and test",
    "WorkerSettings": "Workers",
}
FIRST = {
    "--out", "--preset", "--replicates", "--tune", "--restart", "--json", "--help", "--help-all", "--test", "--limit",
    "--per-class", "--generator", "--device", "--steps", "--variants", "--guidance-scales", "--noise-strength",
    "--interpolation", "--recipe", "--architecture", "--train-steps", "--arms", "--seeds", "--prompts",
    "--k", "--pool", "--clip", "--extractor", "--sentences", "--shots", "--methods", "--with", "--stage",
    "--minutes", "--corpus", "--unet-samples", "--real", "--generated", "--filter", "--copies", "--time-limit",
    "--price", "--images", "--stronger", "--preview", "--log-to", "--to", "--online", "--target-gain", "--arm",
    "--abstain-below", "--dry-run", "--workers",
}  # fmt: skip
EXAMPLES = {
    "preview": ("dinv preview photos", "dinv preview photos --images 12 --stronger 5 --out looks/photos.png"),
    "plan": ("dinv plan photos --price 2.5", "dinv plan photos --variants 20 --time-limit 2h"),
    "run": (
        "dinv run photos --out runs/photos",
        "dinv run photos --test photos-test --per-class 20 --replicates 5",
        "dinv run scans --groups patient --attributes sex",
        "dinv run photos --tune interpolation=0.1,0.4 --tune-seconds 3600",
        "dinv run hf:user/name --preset paper --generator models/stable-diffusion --resolution 256 --device cuda",
    ),
    "invert": ("dinv invert photos --out runs/photos", "dinv invert photos --out runs/photos --workers 4"),
    "sample": (
        "dinv sample runs/photos --variants 20",
        "dinv sample runs/photos --restart --interpolation 0.4",
    ),
    "train": (
        "dinv train runs/photos --recipe fast --train-steps 2000",
        "dinv train runs/photos --restart --filter drop",
    ),
    "grow": (
        "dinv grow runs/photos --images 2000",
        "dinv grow runs/photos --target-gain 2 --time-limit 2h",
        "dinv grow runs/scans --images 500 --balance sex",
    ),
    "demo": ("dinv demo", "dinv demo --data digits"),
    "predict": (
        "dinv predict runs/photos new-photos --out predictions.csv",
        "dinv predict runs/photos new-photos --out predictions.parquet --abstain-below 0.8",
    ),
    "export": (
        "dinv export runs/photos --to onnx --arm real+synthetic --out classifiers",
        "dinv export runs/photos --to parquet --out photos-synthetic",
    ),
    "push": (
        "dinv push runs/photos owner/name --out published --dry-run",
        "dinv push runs/photos owner/name --out uploaded --licence cc-by-4.0",
    ),
    "audit": (
        "dinv audit runs/photos",
        "dinv audit photos photos-synthetic --test photos-test --out audits/photos",
    ),
    "membership": (
        "dinv membership runs/photos",
        "dinv membership runs/photos --of synthetic,classifier --limit 1000",
    ),
    "inspect": ("dinv inspect photos", "dinv inspect photos --test photos-test --csv problems.csv"),
    "status": ("dinv status runs/photos", "dinv status runs/photos --watch 10"),
    "compare": ("dinv compare runs/photos runs/stronger", "dinv compare runs/a runs/b runs/c --out compared.html"),
    "verify": ("dinv verify runs/photos",),
    "repair": ("dinv repair runs/photos",),
    "forget": ("dinv forget runs/photos --source cat/001.png",),
    "adopt": (
        "dinv adopt photos others --out runs/others",
        "dinv adopt photos others --image-size 64 --out runs/others",
    ),
    "retrieve": ("dinv retrieve photos --pool pool --k 10,25,50 --out runs/retrieved",),
    "lecf": ("dinv lecf photos --clip models/clip --out runs/lecf",),
    "sweep": ("dinv sweep experiments/figure6.toml --data cifar10-train.parquet --out sweeps/figure6",),
    "metrics": (
        "dinv metrics photos runs/photos/synthetic",
        "dinv metrics photos runs/photos/synthetic --extractor inception --weights models/inception",
    ),
    "few-shot": ("dinv few-shot photos --clip models/clip --shots 1,2,4,8,16",),
}


class Page(typer.core.TyperCommand):
    """A command whose help has sections, and in long pages only the options that matter first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections; an option's is the panel that it was made with."""
        sections: dict[str, list[tuple[str, str]]] = {}
        params = self.get_params(ctx)
        whole = HELP_ALL.name not in {param.name for param in params} or ctx.meta.get(_WHOLE, False)
        left = 0
        for param in params:
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                sections.setdefault("Arguments", []).append(record)
            elif whole or param.required or FIRST & {*param.opts, *param.secondary_opts}:
                sections.setdefault(getattr(param, "rich_help_panel", None) or OTHERS, []).append(record)
            else:
                left += 1
        order = ["Arguments", *SECTIONS.values(), OTHERS]
        for title in sorted(sections, key=order.index):
            with formatter.section(title):
                formatter.write_dl(sections[title])
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} more options: dinv {_words(ctx)} --help-all")
        if examples := EXAMPLES.get(_words(ctx)):
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _words(ctx: Any) -> str:
    """What is typed after `dinv` for a command: "run", "gan train"."""
    above = ctx.parent
    return "" if above is None else f"{_words(above)} {ctx.info_name}".strip()


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_WHOLE] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


_WHOLE = f"{__name__}.whole"
HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every option and exit."),
    ],
)
