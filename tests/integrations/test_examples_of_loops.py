"""The examples of loops run as they are, each in the process of this test, and say what they should."""

import re
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "plain_loop": (r"epoch 8: late, accuracy 0\.9\d+", r"one averaged network: 0\.9\d+"),
    "accelerate_loop": (r"epoch 4: late, round 11, turn \d", r"training accuracy 0\.[89]\d+"),
    "timm_loop": (r"epoch 3: late", r"one averaged ResNet: 0\.\d+"),
    "transformers_text": (r"BertForSequenceClassification, largest difference 0\.0e\+00",),
    "transformers_images": (
        r"resumed equals uninterrupted: True",
        r"ResNetForImageClassification: test accuracy 0\.\d+",
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, capsys) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for words in SAYS[name]:
        assert re.search(words, said), said
