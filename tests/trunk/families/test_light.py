"""A library of networks is there without torch's compiler, and the compiler is whole when somebody asks for it."""

import subprocess
import sys

import pytest

OPEN = "import sys\nfrom pipeline.trunk.families.family import family_of\nfamily_of({trunk!r})\n"
LIGHT = "assert 'torchvision.ops.roi_align' in sys.modules and 'torch._dynamo.utils' not in sys.modules\n"


def python(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.slow
def test_torchvision_is_imported_without_the_compiler() -> None:
    python(OPEN.format(trunk="resnet18") + LIGHT)


@pytest.mark.slow
def test_what_needs_the_compiler_has_it_then() -> None:
    python(
        OPEN.format(trunk="resnet18") + LIGHT + "import torch, torchvision\n"
        "boxes = torch.tensor([[0.0, 0, 0, 2, 2]])\n"
        "assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 2).shape == (1, 1, 2, 2)\n"
        "from torchvision.ops import roi_align\n"
        "import torch._dynamo.utils as real\n"
        "assert roi_align.__globals__['is_compile_supported']('cpu') == real.is_compile_supported('cpu')\n"
        "assert (torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)) == 2).all()\n"
    )


def test_help_imports_neither_arrays_nor_files_of_them() -> None:
    python(
        "import sys\nfrom pipeline.cli.main import main\nmain(['train', '--help'])\n"
        "assert not {'numpy', 'h5py', 'torch', 'sklearn'} & set(sys.modules)\n"
    )
