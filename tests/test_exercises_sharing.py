import pytest

from edutools.exercises import check_adapter_change, check_moment_bytes


def change(A, B, alpha):
    return alpha / len(A) * B @ A


def size(d, layers):
    return 8 * d**2 * layers


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_adapter_change, change),
        (check_adapter_change, lambda A, B, alpha: (B * alpha / B.shape[1]) @ A),
        (check_moment_bytes, size),
        (check_moment_bytes, lambda d, layers: (layers * d * d * 64) / 8),
    ],
)
def test_a_right_answer_passes(check, right):
    feedback = check(right)
    assert feedback
    assert repr(feedback).startswith("Correct: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda A, B, alpha: change(A, B, alpha).T, "transposed"),
        (lambda A, B, alpha: B @ A, "scale is missing"),
        (lambda A, B, alpha: alpha * B @ A, "not divided by the rank"),
        (lambda A, B, alpha: len(A) / alpha * B @ A, "upside down"),
        (lambda A, B, alpha: alpha / len(A) ** 0.5 * B @ A, "use_rslora"),
        (lambda A, B, alpha: A @ B, "shape"),
        (lambda A, B, alpha: 0 * (B @ A), "the numbers are not"),
        (lambda A: A, "other arguments"),
    ],
)
def test_a_wrong_change_is_recognized(wrong, message):
    feedback = check_adapter_change(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d, layers: d**2 * layers, "not bytes"),
        (lambda d, layers: 4 * d**2 * layers, "float32"),
        (lambda d, layers: 8 * d * layers, "a vector"),
        (lambda d, layers: 8 * d**2, "several"),
        (lambda d, layers: 64 * d**2 * layers, "bits"),
        (lambda d, layers: 8 * d**2 * layers / 2**30, "GiB"),
        (lambda d, layers: 4 * d * (d + 1) * layers, "kept whole"),
        (lambda d, layers: 0 * d, "the numbers are not"),
        (lambda d: d, "other arguments"),
    ],
)
def test_a_wrong_size_is_recognized(wrong, message):
    feedback = check_moment_bytes(wrong)
    assert not feedback
    assert message in feedback.message
