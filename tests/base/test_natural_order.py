from rehearsal_kit.base.natural_order import in_natural_order


def test_numbers_in_names_count_as_numbers():
    assert in_natural_order(["a10b2", "a9b10", "a9b9"]) == ["a9b9", "a9b10", "a10b2"]
    assert in_natural_order(["a²", "a1"]) == ["a1", "a²"]
