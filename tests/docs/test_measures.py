"""The code stays small, flat in its calls and layered: limits of what `measures` measures."""

from __future__ import annotations

from statistics import fmean

import pytest

from tests.docs import measures

MOST_LONG_FUNCTIONS = 2
LONGEST_MEAN_FUNCTION = 10.5
MOST_FILES_IN_A_FOLDER = 22
LONGEST_CHAIN = 12
MOST_HOPS = 7


@pytest.fixture(scope="module")
def code() -> measures.Code:
    """The modules of this checkout."""
    return measures.Code.read(measures.ROOT)


def test_no_file_is_long(code: measures.Code) -> None:
    assert measures.long_files(code) == {}


def test_few_functions_are_long(code: measures.Code) -> None:
    functions = measures.long_functions(code)
    assert len(functions) <= MOST_LONG_FUNCTIONS, functions


def test_functions_are_short_on_average(code: measures.Code) -> None:
    assert fmean(measures.functions(code).values()) <= LONGEST_MEAN_FUNCTION


def test_no_function_has_many_branches(code: measures.Code) -> None:
    assert measures.complex_functions(code) == []


def test_no_folder_has_many_files(code: measures.Code) -> None:
    (largest,) = measures.folder_sizes(code).most_common(1)
    assert largest[1] <= MOST_FILES_IN_A_FOLDER, largest


def test_no_modules_import_each_other(code: measures.Code) -> None:
    assert measures.cycles(code) == []


def test_no_import_points_up(code: measures.Code) -> None:
    assert measures.upward(code) == []


def test_chains_of_imports_are_short(code: measures.Code) -> None:
    chain = measures.chain(code)
    assert len(chain) <= LONGEST_CHAIN, chain


def test_few_calls_lie_between_a_handler_and_the_session() -> None:
    way = measures.way()
    assert way.hops <= MOST_HOPS, way
    assert way.crossings == 1
