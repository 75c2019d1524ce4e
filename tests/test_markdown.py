"""A card's text stays text, whatever a file, a licence or a recipe is called or says."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge import markdown

EVIL = "a`|<img src=x onerror=alert(1)>|\n```\n<script>alert(2)</script>\n---\nlicense: mit\n[x](javascript:1)"
ANY = st.text(st.characters(codec="utf-8"))


def test_one_line_without_html_code_links_or_cells():
    shown = markdown.text(EVIL)
    assert not {"\n", "`", "|", "<", ">"} & set(shown)
    assert "\\[x\\](javascript:1)" in shown


@given(ANY)
def test_text_is_one_cell(text):
    shown = markdown.text(text)
    assert not {"|", "<", ">", "`"} & set(shown)
    assert shown.isprintable()


def test_paragraphs_keep_their_lines():
    assert markdown.paragraphs(" a fox\n<b>in snow</b> \n") == "a fox\n&lt;b&gt;in snow&lt;/b&gt;"


def test_code_is_longer_fenced_than_what_it_holds():
    assert markdown.code("a") == "`a`"
    assert markdown.code("``") == "``` `` ```"
    assert markdown.code("a``b`") == "``` a``b` ```"


@given(st.dictionaries(ANY, st.recursive(ANY | st.integers(), st.lists, max_leaves=5), max_size=4))
def test_yaml_ends_no_fence_and_is_read_as_it_was(value):
    block = markdown.fenced(value)
    assert block.count("```") == 2
    assert yaml.safe_load(block.removeprefix("```yaml\n").removesuffix("```")) == value


def test_front_matter_cannot_be_ended_from_within():
    front = markdown.front({"license": "mit\n---\nlicense: cc0", "name": EVIL})
    assert front.count("\n---\n") == 1
    assert yaml.safe_load(front[4:-4]) == {"license": "mit\n---\nlicense: cc0", "name": EVIL}
