"""The line that a run prints for an epoch."""

import pytest

from jaxslim.training.progress import Progress

ROW = {"epoch": 2, "loss": 1.5, "accuracy": 0.25, "learning_rate": 0.1}


@pytest.mark.parametrize(("scales", "words"), [({"small_scales": 0.5}, "scales under 0.01  50.0%  "), ({}, "")])
def test_a_network_without_scales_has_none_to_show(capsys, scales, words):
    with Progress("tiny", 10, 6, 6, 4) as progress:
        progress.finish_epoch({**ROW, **scales}, 7.0)
    line = f"epoch  2/10  loss 1.5000  accuracy  25.00%  rate 0.1  {words}7 images/s\n"
    assert capsys.readouterr() == ("", line)
