"""The page that goes with an exported model: what it is, how to load it, what it learned from, where it ends.

Knows what an export is described by, and runs nothing.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.base.words import many, percent, significant
from pipeline.runs import folder as runs
from pipeline.stages.score.figures import recorded
from pipeline.trunk.families.family import family_of


def title(run: runs.Run) -> str:
    """The card's first line, by which it is known again."""
    return f"# {run.folder.name}\n"


def model_card(run: runs.Run, about: dict[str, Any], format: str, file: str, parity: dict[str, float]) -> str:
    """The card as Markdown: what the model is, what it learned from, how well it does, and where it ends."""
    cache, transform = run.config["cache"], about["transform"]
    weights = about["weights"] if about["pretrained"] else f"{about['weights']} (NOT known to be pretrained)"
    counts = ", ".join(f"{n:,} {split}" for split, n in cache["rows"].items() if n)
    lines = [
        title(run),
        f"An image classifier of {len(about['classes'])} classes: the network {about['trunk']} and a head from "
        f"`pipeline {run.stage}`.\n",
        "## Use\n",
        f"`{file}` ({format}) takes float32 images (n, 3, {transform['crop']}, {transform['crop']}), RGB, short side "
        f"resized to {transform['resize']} ({transform['interpolation']}), centre {transform['crop']} cropped, divided "
        f"by 255, less the mean {transform['mean']}, divided by {transform['std']}; it gives logits "
        f"(n, {len(about['classes'])}); probabilities are softmax(logits / {significant(about['temperature'])}), the "
        "temperature that rows which it had not learned from have given (1: none).\n",
        "```python",
        *snippet(file, about),
        "```\n",
        "Checked against the model after it was written: largest difference as a share of the largest logit, "
        + ", ".join(f"batch {size}: {value:.0e}" for size, value in parity.items())
        + ".\n",
        "## Classes\n",
        *(f"{i}. {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(about["classes"])),
        "\n## Data\n",
        f"{json.dumps(cache['about']['source'])}: {counts} images; learned from "
        f"{' + '.join(run.config.get('learned_from', ['train']))}.\n",
        "## Figures\n",
        _figures(run),
        "\n## Provenance\n",
        f"- trunk weights: {weights}",
        f"- settings fingerprint of the features (their key): `{about['key']}`",
        f"- made {run.config['started']} with " + ", ".join(f"{k} {v}" for k, v in run.config["versions"].items()),
        "\n## Limits\n",
        "- It knows these classes only, and names one of them for any image.",
        "- Its figures hold for images like those above; other cameras, places or times need a test of their own.",
        "- Probabilities are calibrated for images like those above, only as far as the figures say.",
    ]
    if about["decode"] == "scaled":
        lines.append(
            "- The images that it learned from were shrunk while they were decoded, where they were large JPEGs. The "
            "code above decodes every pixel: of such an image a probability may differ in the third digit."
        )
    if not about["pretrained"]:
        lines.append("- Its trunk's weights are random or of unknown origin: good for trying things, not for results.")
    return "\n".join(lines) + "\n"


def _figures(run: runs.Run) -> str:
    known = recorded(run.folder)
    if known is None:
        return f"Not tested yet (`pipeline evaluate {run.folder.name}`)."
    test, float32 = known.test, known.float32
    precision = run.learned_in
    if float32 is not None:
        return (
            f"Test split, {many(test['n'], 'image')}: accuracy {percent(float32.accuracy)}, log-loss "
            f"{significant(float32.log_loss)}, by this network. The head learned from features in {precision}, and on "
            f"those has accuracy {percent(test['accuracy'])}."
        )
    of = f" Of the head on features in {precision}, not of this network." if precision else ""
    return (
        f"Test split, {many(test['n'], 'image')}: accuracy {percent(test['accuracy'])}, "
        f"macro-F1 {percent(test['macro_f1'])}, log-loss {significant(test['log_loss'])}.{of}"
    )


def snippet(file: str, about: dict[str, Any]) -> list[str]:
    """Lines of Python that load the file and name a photograph's class, without this package."""
    t, ending = about["transform"], file.rpartition(".")[2]
    imports, load, run = _ways(file, ending, about)
    return [
        *sorted(["import numpy as np", *imports]),
        "from PIL import Image, ImageOps",
        "",
        f"classes = {about['classes']!a}",
        *load,
        "",
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
        "width, height = image.size",
        f"short = {t['resize']}",
        "size = (short, short * height // width) if width <= height else (short * width // height, short)",
        f"image = image.resize(size, Image.Resampling.{t['interpolation'].upper()})",
        f"left, top = (round((side - {t['crop']}) / 2) for side in size)",
        f"image = image.crop((left, top, left + {t['crop']}, top + {t['crop']}))",
        f"pixels = (np.asarray(image, np.float32) / 255 - np.float32({t['mean']})) / np.float32({t['std']})",
        "images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])",
        "",
        *run,
        f"p = np.exp((logits - logits.max()) / {about['temperature']!r})",
        "p /= p.sum()",
        "print(classes[p.argmax()], p.max())",
    ]


def _ways(file: str, ending: str, about: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """For a file's ending: imports, the lines that load the model, and those that run it."""
    if ending == "onnx":
        load = [f"session = onnxruntime.InferenceSession({file!r})"]
        return ["import onnxruntime"], load, ['logits = session.run(None, {"images": images})[0][0]']
    run = ["with torch.inference_mode():", "    logits = model(torch.from_numpy(images))[0].numpy()"]
    if ending == "pt2":
        return ["import torch"], [f"model = torch.export.load({file!r}).module()"], run
    family, name = family_of(about["trunk"])
    size = about["transform"]["crop"]
    module, made = family.code(name, num_classes=len(about["classes"]), image_size=size, pretrained=about["pretrained"])
    state = f"torch.load({file!r}, weights_only=True)"
    imports = [f"import {module}", "import torch"]
    if ending == "safetensors":
        state, imports = f"load_file({file!r})", [*imports, "from safetensors.torch import load_file"]
    return imports, [f"model = {made}", f"model.load_state_dict({state})", "model.eval()"], run
