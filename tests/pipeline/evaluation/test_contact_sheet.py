"""The contact sheet: self-contained, safe with any caption, honest about which match is right."""

import io
import re

from PIL import Image

from pipeline.evaluation.contact_sheet import Item, Match, Query, contact_sheet
from pipeline.evaluation.evaluator import Section
from pipeline.evaluation.report import report_page


def picture(mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (500, 300)).save(out, "PNG")
    return out.getvalue()


def test_page_is_self_contained_and_escapes_captions():
    hostile = '<script>alert("x")</script> & "quotes" ' + "long " * 100
    query = Query(
        Item(picture("RGBA")), [Match(Item(caption=hostile), 0.5, True)], 1.0, Item(caption=hostile), 0.5
    )
    page = report_page("<i>heading", {"<b>": "a & b"}, [Section("<u>section", contact_sheet([query]))])
    for tag in ("<script>", "<i>", "<u>", "<b>"):
        assert tag not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "url(" not in page
    assert 'src="data:image/jpeg;base64,' in page


def test_right_matches_are_marked_and_ranks_and_scores_are_shown():
    matches = [
        Match(Item(caption="first"), 0.912, False),
        Match(Item(caption="second"), 0.834, True),
        Match(Item(caption="third"), 0.8, correct=False, related=True),
    ]
    page = contact_sheet([Query(Item(caption="asked"), matches, 14.5, Item(caption="second"), 0.834)])
    cards = re.findall(r'<div class="card( correct| related)?">.*?<p class="score">([^<]*)</p>', page)
    assert cards == [("", "0.912"), (" correct", "0.834 ✓"), (" related", "0.800 ✓ of its group")]
    assert "rank 14.5, 0.834" in page
