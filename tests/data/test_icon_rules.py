from mvar.data.sets import icon_rules as rules


def test_names_lose_their_style():
    for name, plain in {
        "alarm-clock-2-outline-24px": "alarm-clock",
        "bell3-16x16-filled": "bell",
        "street-light-bold": "street-light",
        "street-light-pole-light": "street-light-pole",
        "home-light": "home",
        "outline": "",
    }.items():
        assert rules.plain_name(name) == plain
    assert rules.picture_of("home-2-light") == rules.picture_of("home-2") != rules.picture_of("home")


def test_concepts_of_names_and_what_people_saw():
    assert rules.concept_of("mdi", "home-outline") == "house"
    assert rules.concept_of("mdi", "nothing-known") is None
    assert rules.concept_of("bi", "gender-male") == rules.concept_of("mdi", "male") == "mars"
    assert rules.concept_of("tabler", "man-filled") == "man"
    assert rules.concept_of("tabler", "notification") is None
    assert rules.is_wrong("apple", "bi", "apple")
    assert not rules.is_wrong("anchor", "bi", "apple")
    assert rules.designer_of("fa6-solid") == rules.designer_of("fa") != rules.designer_of("mdi")
    assert [rules.split_of(prefix) for prefix in ("uit", "carbon", "mdi")] == ["val", "val", "train"]


def test_the_lists_are_whole():
    names = [name for several in rules.CONCEPTS.values() for name in several]
    assert len(names) == len(set(names))  # each of one concept
    assert [name for name in names if rules.plain_name(name) != name] == []  # these would never be found
    keys = [key for file in ("rejects.txt", "relabels.txt") for key in rules._read(file)]
    concepts = {word for key in keys for word in key.split(" > ")} - {"-"}
    assert concepts <= rules.CONCEPTS.keys()
    designers = [prefix for several in rules._read("designers.txt").values() for prefix in several]
    assert len(designers) == len(set(designers))
