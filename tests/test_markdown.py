"""Whatever a model's tokens or a user's names hold, a page shows it and obeys none of it."""

import pytest

from headjax.analyses.salient_operations import salient_page
from headjax.report.markdown import markdown_code, markdown_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("two\nlines\r\n# head", r"two lines \# head"),
        ("a`b*c_d", r"a\`b\*c\_d"),
        ("&lt;", "&amp;lt;"),
        ("gpt2-xl v1.0", "gpt2-xl v1.0"),
    ],
)
def test_text_is_one_line_without_markup(text, shown):
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a|b", r"`␣a\|b`"),
        ("`", r"`\u0060`"),
        ("\n", r"`\n`"),
        ("\u2028\u202e\x85", r"`\u2028\u202e\x85`"),
        ("<script>", "`<script>`"),
    ],
)
def test_code_stays_in_its_column(text, shown):
    assert markdown_code(text) == shown


def test_a_page_of_salient_operations_holds_no_markup_of_a_model():
    one = {"token": "`|</td><script>", "amplification": 1.5, "mapped": ["\n[x](y)"]}
    lines = salient_page({"<b>m|odel</b>\n# x": {"L0H0": [one]}}).splitlines()
    assert r"## &lt;b&gt;m\|odel&lt;/b&gt; \# x" in lines
    assert r"| `\u0060\|</td><script>` | 1.5 | `\n[x](y)` |" in lines
