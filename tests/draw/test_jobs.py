"""What is asked for, as jobs."""

import pytest

from lcmmerge.draw.jobs import jobs_of, parse_size, read_prompts
from lcmmerge.errors import FormatError, NotFoundError


def test_jobs_have_the_same_seeds_for_every_prompt():
    jobs = jobs_of(["a", "b"], (768, 512), negative="c", seed=7, count=2)
    assert [(job.prompt, job.seed) for job in jobs] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert {(job.negative, job.width, job.height) for job in jobs} == {("c", 768, 512)}


def test_prompts_one_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa paper fox\r\n\n  # 1 in the world  \nλ\n".encode())
    assert read_prompts(path) == ["a paper fox", "# 1 in the world", "λ"]


@pytest.mark.parametrize(
    ("content", "error", "cause"),
    [
        (None, NotFoundError, "No such file"),
        (b"\n \n", FormatError, "holds no prompt"),
        (b"\xff\xfe", FormatError, "not text in UTF-8"),
    ],
)
def test_prompts_that_are_none(content, error, cause, tmp_path):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=cause):
        read_prompts(path)


@pytest.mark.parametrize("text", ["768X512", "768x512"])
def test_sizes(text):
    assert parse_size(text) == (768, 512)


@pytest.mark.parametrize("text", ["", "512", "512x", "512x-8", "512x512x512", "513x512", "512x0", "٨x8"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match=r"is not a size|multiples of 8"):
        parse_size(text)
