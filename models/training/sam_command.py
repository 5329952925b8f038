"""python -m models.training sam: fine-tunes the mask decoder of a SAM on annotated images."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.backends.load import ModelStore
from models.data.sources import add_data_arguments
from models.training.machine import add_machine_arguments, machine_of
from models.training.sam_losses import LossWeights
from models.training.sam_options import SamOptions

if TYPE_CHECKING:
    from models.training.__main__ import Subparsers

_FIT = ("epochs", "learning_rate", "weight_decay", "schedule", "warm_up", "averaging", "patience", "seed")
_OWN = ("model", "side", "padding", "batch", "rounds")


def register(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("sam", help="fine-tune a SAM", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    parser.add_argument("--name", default="my-sam", help="what requests will call the model (%(default)s)")
    parser.add_argument("--licence", default="not stated", help="of the trained weights (%(default)s)")
    add_data_arguments(parser)
    _add_recipe_arguments(parser)
    _add_origin_arguments(parser)
    add_machine_arguments(parser)
    parser.set_defaults(run=_run)


def options_of(given: argparse.Namespace) -> SamOptions:
    """Read the recipe's arguments.

    Raises:
        CannotTrain: a choice that is none.
    """
    default = SamOptions()
    loss = LossWeights(focal=given.focal_weight, dice=given.dice_weight, iou=given.iou_weight)
    fit = dataclasses.replace(default.fit, **{name: getattr(given, name) for name in _FIT})
    own: dict[str, Any] = {name: getattr(given, name) for name in _OWN}
    return dataclasses.replace(default, fit=fit, loss=loss, **own)


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    default = SamOptions()
    group = parser.add_argument_group("recipe")
    add = group.add_argument
    add("--model", default=default.model, help="what to begin from, a name of the catalogue (%(default)s)")
    add(
        "--size",
        type=int,
        default=default.side,
        dest="side",
        help="longest side in pixels at which it will be served: 1024, 768 or 512 (%(default)s)",
    )
    add("--padding", choices=("none", "square"), default=default.padding, help="as it will be served (%(default)s)")
    add("--batch", type=int, default=default.batch, help="prompts at a time (%(default)s)")
    add("--rounds", type=int, default=default.rounds, help="corrective clicks after each first prompt (%(default)s)")
    add("--focal-weight", type=float, default=default.loss.focal, help="of the loss (%(default)s)")
    add("--dice-weight", type=float, default=default.loss.dice, help="of the loss (%(default)s)")
    add("--iou-weight", type=float, default=default.loss.iou, help="of the predicted IoU's error (%(default)s)")
    add("--epochs", type=int, default=default.fit.epochs, help="most that are run (%(default)s)")
    add("--learning-rate", type=float, default=default.fit.learning_rate, help="the highest (%(default)s)")
    add("--weight-decay", type=float, default=default.fit.weight_decay, help="(%(default)s)")
    add("--schedule", choices=("constant", "cosine"), default=default.fit.schedule, help="(%(default)s)")
    add("--warm-up", type=float, default=default.fit.warm_up, help="share of the steps in which the rate rises")
    add("--averaging", type=float, default=default.fit.averaging, help="decay of the weights' average, 0 for none")
    add("--patience", type=int, default=default.fit.patience, help="epochs without a better score, 0 for no end")
    add("--seed", type=int, default=default.fit.seed, help="of everything drawn by lot (%(default)s)")


def _add_origin_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("origin of the model to begin from")
    group.add_argument("--models-file", type=Path, metavar="FILE", help="adds your own models to the catalogue")
    group.add_argument("--weights", type=Path, metavar="FOLDER", help="checkpoints under their official names")
    group.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="what computes the embeddings (torch with a CUDA device, else openvino)",
    )


def _run(given: argparse.Namespace) -> None:
    options = options_of(given)
    from models.training.model_card import Product
    from models.training.sam_training import Origin, train_sam

    machine = machine_of(given)
    origin = Origin(ModelStore(machine.cache_dir, given.weights), given.models_file, given.backend)
    product = Product(given.out, given.name, given.licence)
    train_sam(options, given.data, product, machine, origin, resume=given.resume)
