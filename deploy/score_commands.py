"""`rewardtune score`: prediction files judged without a model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deploy.cli_output import AsJson, console, friendly, print_metrics

score_app = typer.Typer(no_args_is_help=True, help="Judge prediction files, without a model.")


@score_app.command()
@friendly
def detection(
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON, the ground truth.")],
    predictions: Annotated[Path, typer.Option(help="COCO results JSON.")],
    as_json: AsJson = False,
) -> None:
    """The 12 COCO figures of a prediction file, and its mean rewards an image."""
    from rewards.score import score_detection

    print_metrics(str(predictions), score_detection(annotations, predictions), as_json)


@score_app.command()
@friendly
def captioning(
    references: Annotated[Path, typer.Option(help="{id: [sentence, ...]}, or COCO captions.")],
    candidates: Annotated[Path, typer.Option(help="{id: [sentence]}, or COCO results.")],
    tokenised: Annotated[
        bool | None,
        typer.Option("--tokenised/--raw", help="What the sentences are; default: seen from them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """CIDEr-D of a file of captions (papers report it times 100); --json has it by image, too."""
    from rewards.score_captioning import score_captions

    figures = score_captions(references, candidates, tokenised)
    if not as_json:
        del figures["by_image"]
    print_metrics(str(candidates), figures, as_json)


@score_app.command()
@friendly
def panoptic(
    annotations: Annotated[Path, typer.Option(help="COCO panoptic JSON, the ground truth.")],
    annotation_dir: Annotated[Path, typer.Option(help="The folder of its PNGs.")],
    predictions: Annotated[Path, typer.Option(help="COCO panoptic JSON of predictions.")],
    prediction_dir: Annotated[Path, typer.Option(help="The folder of its PNGs.")],
    penalty: Annotated[
        float, typer.Option(help="What an unmatched prediction costs the reward.")
    ] = 0.3,
    as_json: AsJson = False,
) -> None:
    """PQ, SQ and RQ over all classes, things and stuff and by class, and the reward an image."""
    from rewards.score_panoptic import score_panoptic

    scores = score_panoptic(annotations, annotation_dir, predictions, prediction_dir, penalty)
    if as_json:
        print(json.dumps(scores, indent=1))
        return
    table = Table("", "PQ", "SQ", "RQ", "N", title=str(predictions), title_justify="left")
    splits = {name: scores[name] for name in ("all", "things", "stuff")}
    for name, figures in {**splits, **scores["classes"]}.items():
        cells = [f"{figures[key]:.4f}" for key in ("PQ", "SQ", "RQ")] if figures else ["-"] * 3
        table.add_row(name, *cells, str(figures.get("N", "")) if figures else "0")
    console.print(table)
    console.print(f"reward an image: {scores['reward']:.4f} (mean of {scores['images']})")


@score_app.command()
@friendly
def colorization(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    hue: Annotated[str, typer.Option(help="atan2, or arctan as the paper writes it.")] = "atan2",
    as_json: AsJson = False,
) -> None:
    """Vivid fraction, hue entropy and their product, the reward, of each image, and the means."""
    from rewards.score_colorization import MEANS, score_colorization

    scores = score_colorization(images, hue)
    if as_json:
        print(json.dumps(scores, indent=1))
        return
    table = Table("image", *MEANS)
    rows = {**scores["by_image"], f"mean of {scores['images']}": scores}
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[mean]:.4f}" for mean in MEANS))
    console.print(table)
