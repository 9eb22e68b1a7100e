"""What is made of slides in the background: begun once, asked after on its way, begun again after an error."""

import threading
import time

import numpy as np
import pytest

from saccade.attention.background_jobs import SlideJobs, SlideProgress
from saccade.errors import DataError, UsageError


def until_settled(background, key):
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        state = background.state(key)
        if state is None or state.ready or state.error:
            return state
        time.sleep(0.01)
    raise AssertionError("still on its way")


def test_a_slide_is_begun_once_and_tells_how_far_it_is():
    background, go_on, counted, begun = SlideJobs("tiles", 1000), threading.Event(), threading.Event(), []

    def make(done):
        begun.append(1)
        done(2)
        counted.set()
        assert go_on.wait(30)
        done(9)  # more than there are: a program may count in whole batches
        return np.ones(3, np.float32)

    assert background.state("slide") is None
    assert background.start("slide", 5, make) in (SlideProgress(0, 5, False), SlideProgress(2, 5, False))
    assert counted.wait(30)
    assert background.start("slide", 5, make) == SlideProgress(2, 5, False)
    with pytest.raises(UsageError, match="the tiles of this slide have not been computed yet"):
        background.result("slide")
    go_on.set()
    assert until_settled(background, "slide") == SlideProgress(5, 5, True)
    assert background.start("slide", 5, make) == SlideProgress(5, 5, True) and begun == [1]
    assert background.result("slide").tolist() == [1, 1, 1]


def test_what_went_wrong_is_said_and_may_be_tried_again():
    background = SlideJobs("regions", 1000)

    def broken(done):
        raise DataError("a.svs: cannot be read")

    background.start("a", 3, broken)
    assert "a.svs: cannot be read" in until_settled(background, "a").error
    background.start("a", 3, lambda done: np.zeros(1))
    assert until_settled(background, "a") == SlideProgress(3, 3, True)


def test_a_slide_that_had_to_make_room_is_as_if_nobody_had_asked():
    background = SlideJobs("tiles", 100)
    for key in ("old", "new"):
        background.start(key, 1, lambda done: np.zeros(10))
        assert until_settled(background, key).ready
    assert background.state("old") is None and background.state("new").ready


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_is_said_as_well():
    background = SlideJobs("tiles", 100)

    def wrong(done):
        raise ZeroDivisionError("no tiles")

    background.start("a", 3, wrong)
    assert until_settled(background, "a").error == "ZeroDivisionError: no tiles"
