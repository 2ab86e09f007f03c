"""The index finds what a search through all paths would find."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.image_names import NotHere
from pipeline.sharding.member_index import MemberIndex
from pipeline.sharding.rows import Rejected

paths = st.lists(st.sampled_from("abü"), min_size=1, max_size=4).map("/".join)


def searched(members: list[str], name: str) -> int | str:
    """The place by the rule as it is written, or the reason why there is none."""
    for whole in (name, *shared_folders(members, name)):
        if whole in members:
            return len(members) - 1 - members[::-1].index(whole)
    deeper = {member for member in members if member.endswith("/" + name)}
    if len(deeper) > 1:
        return "ambiguous name"
    return len(members) - 1 - members[::-1].index(deeper.pop()) if deeper else "missing"


def shared_folders(members: list[str], name: str) -> list[str]:
    """The name below the leading folders that all members share, unless it begins with them itself."""
    folders = [member.split("/")[:-1] for member in members]
    shared = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0] + "/")
    above = "".join(shared)
    return [] if name.startswith(above) else [above + name]


@given(st.lists(paths, min_size=1, max_size=12), paths)
def test_finds_what_a_search_through_all_paths_finds(members, name):
    index = MemberIndex(
        ((path.encode(), place) for place, path in enumerate(members)), lambda place: members[place].encode()
    )
    try:
        found: int | str = index.find(name)
    except Rejected as reason:
        found = str(reason)
    assert found == searched(members, name)


def test_names_that_no_encoding_takes_are_missing():
    index = MemberIndex([(b"a", 0)], lambda place: b"a")
    with pytest.raises(NotHere):
        index.find("\udc80")


def test_a_lookup_looks_at_few_members_even_where_base_names_repeat():
    members = [f"pmc/PMC{number}/gr1.jpg".encode() for number in range(5000)]
    looked = []

    def path_at(place):
        looked.append(place)
        return members[place]

    index = MemberIndex(((path, place) for place, path in enumerate(members)), path_at)
    looked.clear()
    for name, place in (("PMC77/gr1.jpg", 77), ("pmc/PMC78/gr1.jpg", 78)):
        assert index.find(name) == place
    with pytest.raises(Rejected, match="ambiguous"):
        index.find("gr1.jpg")
    assert len(looked) < 10
