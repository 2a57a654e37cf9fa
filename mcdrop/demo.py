"""`mcdrop demo`: from nothing to a served model, and what its uncertainty is good for, in half a minute.

`python -m mcdrop.demo --save FOLDER` only trains and saves; the container image is built with it.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mcdrop.digits import CLASS_NAMES, INK, Digits, accuracy, load_digits, not_digits, train
from mcdrop.disk.bundle import FILES
from mcdrop.disk.folders import check_replaceable
from mcdrop.errors import McdropError
from mcdrop.prediction import ClassificationPrediction
from mcdrop.predictor import MCDropout
from mcdrop.surroundings.terminal import bar, draw, open_console, progress
from service.server import listen, serve, serving
from service.settings import load_settings

__all__ = ["demo", "save_demo_model"]

EPOCHS = 30
NUM_SAMPLES = 100
SEED = 7
CARD_WIDTH = 38  # a drawing of 16 characters, a gap, its numbers
CARD_GAP = 3


def demo(*, folder: Path, host: str, port: int, once: bool) -> None:
    """Train, show, save and serve; with `once`, ask the server and return.

    Raises PortError or BundleError, before any work, when the port is taken or the folder holds something else.
    """
    listen(host, port).close()
    check_replaceable(folder.resolve(), FILES)
    console = open_console()
    test = load_digits()[1]
    mc = _train_and_save(console, folder)
    _show_uncertainty(console, mc, test)
    settings = load_settings(models=folder, host=host, port=port, log_level="warning")
    image = test.images[int(np.argmax(_ask(mc, test.images).entropy))]
    if not once:
        serve(settings, on_ready=lambda url: _invite(console, url, folder, image))
        return
    with serving(settings) as url:
        _invite(console, url, folder, image, stays=False)
        console.print("\nIts answer:", style="bold")
        _print_line(console, _post(url, image))


def save_demo_model(folder: Path) -> float:
    """Train the demo's network and save it in `folder`; returns its accuracy on the test digits."""
    learn, test = load_digits()
    with progress("training", EPOCHS) as advance:
        network = train(learn, epochs=EPOCHS, on_epoch=advance)
    mc = MCDropout(
        network,
        torch.from_numpy(test.images[:2]).float(),
        task="classification",
        num_samples=NUM_SAMPLES,
        class_names=CLASS_NAMES,
        name="digits",
    )
    mc.save(folder)
    return accuracy(network, test)


# ---- the story


def _train_and_save(console: Console, folder: Path) -> MCDropout:
    learn, test = load_digits()
    _heading(console, "A small network with dropout, trained")
    began = time.perf_counter()
    right = save_demo_model(folder)
    seconds = time.perf_counter() - began
    console.print(
        f"{len(learn):,} handwritten digits (8 x 8 pixels) to learn from, {len(test)} to test on: {seconds:.0f} s."
    )
    console.print(f"{right:.1%} of the test digits are read right, with dropout off.")
    mc = MCDropout.load(folder)
    console.print(f"Saved in {folder}. What is random in it:\n")
    console.print(str(mc.sites))
    return mc


def _show_uncertainty(console: Console, mc: MCDropout, test: Digits) -> None:
    _heading(console, f"Asked {NUM_SAMPLES} times, each time with other units dropped")
    began = time.perf_counter()
    answers = _ask(mc, test.images)
    seconds = time.perf_counter() - began
    wrong = np.asarray(answers.label) != test.labels
    order = np.argsort(answers.entropy)
    doubtful = order[::-1][: len(test) // 10]
    console.print(
        f"{len(test)} digits in {seconds:.2f} s. {wrong.sum()} are read wrong, "
        f"{wrong[doubtful].sum()} of them among the {len(doubtful)} least certain."
    )
    console.print(
        f"""
  total      entropy             in nats: 0 is sure, log 10 = {math.log(10):.2f} is guessing
  aleatoric  expected_entropy    the part that the image itself leaves open
  epistemic  mutual_information  the part on which the thinned networks disagree"""
    )
    per_row = max(1, (console.width + CARD_GAP) // (CARD_WIDTH + CARD_GAP))
    for title, rows in (
        ("Most certain", order[:per_row]),
        ("Least certain", order[: -2 * per_row - 1 : -1]),
    ):
        _heading(console, f"{title} of the test digits")
        names = [f"an {label}" if label == 8 else f"a {label}" for label in test.labels[rows]]
        _cards(console, names, test.images[rows], answers[rows], per_row, truth=test.labels[rows])
    _heading(console, "Shown what is no digit")
    strange = not_digits(test)
    images = np.stack(list(strange.values()))
    _cards(console, list(strange), images, _ask(mc, images), per_row)
    console.print("\nIt has to name a digit; the uncertainty says what the name is worth. It is no")
    console.print("proof: what looks enough like a digit is taken for one.")


def _invite(console: Console, url: str, folder: Path, image: np.ndarray, *, stays: bool = True) -> None:
    _heading(console, f"Served at {url}")
    ask = "Ask for its least certain digit"
    console.print(f"{ask}:\n" if stays else f"{ask} (this demo does, and its server ends with it):\n")
    _print_line(console, curl_line(url, image))
    if stays:
        console.print(f"\nMore at {url}/docs - Ctrl-C stops the server; this starts it again:\n")
        _print_line(console, f"mcdrop serve {folder}")


# ---- asking


def request_body(image: np.ndarray) -> str:
    """The JSON that asks about one image (8, 8)."""
    pixels = json.dumps([image.tolist()], separators=(",", ":"))
    outputs = '["expected_entropy", "mutual_information"]'
    return f'{{"inputs": {pixels}, "num_samples": {NUM_SAMPLES}, "seed": {SEED}, "outputs": {outputs}}}'


def curl_line(url: str, image: np.ndarray) -> str:
    """The command that sends it."""
    return f"curl -s {url}/v1/predict -H 'content-type: application/json' -d '{request_body(image)}'"


def _post(url: str, image: np.ndarray) -> str:
    """Send what `curl_line` sends; returns the answer's text. Raises McdropError when it is no prediction."""
    answer = httpx.post(
        f"{url}/v1/predict",
        content=request_body(image),
        headers={"content-type": "application/json"},
        timeout=60,
        trust_env=False,  # never through a proxy: the server is this process
    )
    if answer.status_code != httpx.codes.OK:
        raise McdropError(f"the server answered {answer.status_code}: {answer.text}")
    return answer.text


def _ask(mc: MCDropout, images: np.ndarray) -> ClassificationPrediction:
    answer = mc(images, num_samples=NUM_SAMPLES, seed=SEED)
    return cast(ClassificationPrediction, answer)


# ---- drawing


def _heading(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")


def _print_line(console: Console, line: str) -> None:
    """Without line breaks of ours, so that it can be pasted."""
    console.print(line, soft_wrap=True)


def _cards(
    console: Console,
    names: Sequence[str],
    images: np.ndarray,
    answers: ClassificationPrediction,
    per_row: int,
    *,
    truth: np.ndarray | None = None,
) -> None:
    """Each image beside its three best guesses and the split of its uncertainty."""
    ascii_only = console.options.ascii_only
    for first in range(0, len(names), per_row):
        table = Table.grid(padding=(0, CARD_GAP, 0, 0), pad_edge=False)
        cells = []
        for row in range(first, min(first + per_row, len(names))):
            wrong = truth is not None and int(answers.label[row]) != int(truth[row])
            card = Table.grid(padding=(0, 2, 0, 0))
            card.add_column(width=2 * images.shape[-1])
            card.add_column(width=CARD_WIDTH - 2 * images.shape[-1] - 2, no_wrap=True)
            drawing = "\n".join(draw(images[row], darkest=INK, ascii_only=ascii_only))
            card.add_row(Text(drawing), _numbers(names[row], answers[row], wrong=wrong, ascii_only=ascii_only))
            cells.append(card)
        table.add_row(*cells)
        if first > 0:
            console.print()
        console.print(table)


def _numbers(name: str, answer: ClassificationPrediction, *, wrong: bool, ascii_only: bool) -> Text:
    probs = np.asarray(answer.mean)
    total, aleatoric, epistemic = (
        float(value) for value in (answer.entropy, answer.expected_entropy, answer.mutual_information)
    )
    lines = Text(name, style="bold")
    lines.append("  read wrong" if wrong else "", style="red")
    for label in np.argsort(probs)[::-1][:3]:
        lines.append(f"\n{CLASS_NAMES[label]} {probs[label]:4.0%} ", style="not bold")
        lines.append(bar(float(probs[label]), width=12, ascii_only=ascii_only), style="not bold cyan")
    lines.append(f"\n\ntotal     {total:5.2f}", style="not bold")
    for part, value, colour in (("aleatoric", aleatoric, "yellow"), ("epistemic", epistemic, "magenta")):
        lines.append(f"\n{part} {value:5.2f} ", style="not bold")
        lines.append(bar(value / math.log(10), width=4, ascii_only=ascii_only), style=f"not bold {colour}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Train and save, for the container image."""
    parser = argparse.ArgumentParser(prog="python -m mcdrop.demo", description=save_demo_model.__doc__)
    parser.add_argument("--save", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
    folder = parser.parse_args(argv).save
    try:
        right = save_demo_model(folder)
    except McdropError as error:
        print(f"mcdrop: error: {error}", file=sys.stderr)
        return 1
    print(f"saved in {folder}; {right:.1%} of the test digits are read right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
