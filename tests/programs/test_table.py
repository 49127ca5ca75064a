"""Declared computations: values and gradients by hand, and what is compiled when."""

import jax
import numpy as np
import pytest

from ghn_jax.programs.cache import ProgramCache
from ghn_jax.programs.relocation import programs_on
from ghn_jax.programs.table import ProgramTable

X = np.array([1.0, 2.0], np.float32)
Y = np.array([3.0, 5.0], np.float32)


def scaled_product(signature, x, y):
    factor, _ = signature
    return np.float32(factor) * x * y


def sign(factor, array=X):
    return factor, array.shape


def test_a_computation_by_hand():
    table = ProgramTable()
    product = table.declare("product", scaled_product)
    np.testing.assert_array_equal(product(sign(2), (X, Y)), [6, 20])
    np.testing.assert_array_equal(product(sign(3), (X, Y)), [9, 30])
    np.testing.assert_array_equal(product(sign(2), (Y, Y)), [18, 50])
    assert table.num_compilations == 2  # a program for each signature


@pytest.mark.parametrize("num_differentiated", [1, 2])
def test_a_gradient_by_hand(num_differentiated):
    table = ProgramTable()
    product = table.declare_differentiable("product", scaled_product, num_differentiated)
    output, residuals = product.forward(sign(2), (X, Y))
    np.testing.assert_array_equal(output, [6, 20])
    cotangent = np.array([1, 10], np.float32)
    grads = product.backward(sign(2), (X, Y), residuals, cotangent)
    # 2 y and 2 x times the cotangent.
    expected = ([6, 100], [2, 40])[:num_differentiated]
    for grad, by_hand in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(grad, by_hand)
    assert table.num_compilations == 2


def test_what_is_differentiated_can_depend_on_the_signature():
    table = ProgramTable()
    product = table.declare_differentiable("product", scaled_product, lambda s: s[0])
    for num in (1, 2):
        output, residuals = product.forward(sign(num), (X, Y))
        assert len(product.backward(sign(num), (X, Y), residuals, output)) == num


def test_accumulated_gradients_are_added_to_totals():
    table = ProgramTable()
    product = table.declare_differentiable("product", scaled_product, 2, accumulates=True)
    _, residuals = product.forward(sign(2), (X, Y))
    totals = (jax.numpy.ones(2), jax.numpy.full(2, 100.0))
    grads = product.backward(sign(2), (X, Y), residuals, np.ones(2, np.float32), totals)
    np.testing.assert_array_equal(grads, [[7, 11], [102, 104]])


def test_donated_memory_is_not_read_again():
    table = ProgramTable()
    product = table.declare("product", scaled_product, donates=True)
    x = jax.device_put(X)
    np.testing.assert_array_equal(product(sign(2), (x, Y)), [6, 20])
    assert x.is_deleted()


def test_what_is_compiled_ahead_is_not_compiled_again():
    table = ProgramTable()
    product = table.declare_differentiable("product", scaled_product, 2)
    given = []

    def arguments():
        given.append(1)
        return (jax.ShapeDtypeStruct(X.shape, X.dtype),) * 2

    assert given == []
    table.compile_ahead([product.backward_compilation(sign(2), arguments)])
    assert table.num_compilations == 2 and given  # the backward program and what it is made from
    del given[:]
    table.compile_ahead([product.backward_compilation(sign(2), arguments)])
    table.start_compiling([product.forward_compilation(sign(2), arguments)])
    output, residuals = product.forward(sign(2), (X, Y))
    product.backward(sign(2), (X, Y), residuals, output)
    assert table.num_compilations == 2 and given == []


def test_backward_programs_compile_with_a_single_thread():
    table = ProgramTable(num_compile_threads=1)  # which must not wait for itself
    product = table.declare_differentiable("product", scaled_product, 2)
    ways = (product.forward_compilation, product.backward_compilation)
    table.start_compiling([way(sign(2), (X, Y)) for way in ways])
    _, residuals = product.forward(sign(2), (X, Y))
    product.backward(sign(2), (X, Y), residuals, X)
    assert table.num_compilations == 2


def test_another_device_runs_copies_and_starts_nothing():
    cache, second = ProgramCache(), jax.devices()[1]
    tables = [ProgramTable(programs_on(cache, device)) for device in jax.devices()[:2]]
    first, other = (table.declare("product", scaled_product) for table in tables)
    tables[1].start_compiling([other.compilation(sign(2), (X, Y))])
    assert cache.num_compilations == 0
    first(sign(2), (X, Y))
    result = other(sign(2), (X, Y))
    assert result.devices() == {second}
    np.testing.assert_array_equal(result, [6, 20])
    assert cache.num_compilations == 1
    # Waiting for it is as good as calling: then the other device may ask for a program first.
    tables[1].compile_ahead([other.compilation(sign(3), (X, Y))])
    assert cache.num_compilations == tables[0].num_compilations == 2


def test_the_most_frequent_programs_are_warmed_up():
    def warm_up(**selection):
        table = ProgramTable()
        product = table.declare("product", scaled_product)
        # Of ten calls seven are of one kind, two of another, one of a third.
        factors = [1] * 7 + [2] * 2 + [3]
        calls = [product.compilation(sign(factor), (X, Y)) for factor in factors]
        num = table.warm_up(calls, **selection)
        assert num == table.num_compilations
        before = num
        for factor in (1, 2, 3):
            product(sign(factor), (X, Y))
        return num, table.num_compilations - before

    assert warm_up(coverage=0.7) == (1, 2)
    assert warm_up(coverage=0.71) == (2, 1)
    assert warm_up() == (3, 0)  # 99% are all of them
    assert warm_up(share=(0, 2)) == (2, 1)
    assert warm_up(share=(1, 2)) == (1, 2)


def test_coverage_out_of_range():
    with pytest.raises(ValueError, match="coverage is -1, expected 0 <= value <= 1"):
        ProgramTable().warm_up([], coverage=-1)
