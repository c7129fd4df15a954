"""Launches of an iteration on a GPU: counting, and the recorded counts."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks.gpu_program.__main__ import RECORDED
from benchmarks.gpu_program.cases import BARS, CASES, selected
from benchmarks.gpu_program.compiling import missing_packages
from benchmarks.gpu_program.counts import CARRY, REST, TOTALS, Counts, Loop, count_iteration
from benchmarks.gpu_program.measure import count_case
from benchmarks.gpu_program.thunks import parse_thunks

ROOT = Path(__file__).parents[2]
REGIONS = ("act", "learn")

SEQUENCE = """\
001: kCustomKernel [source | sink] before grid: [1, 1, 1]
002: kWhile [prev=001 (1) | next=000 (1)]
condition:
    003: kCustomKernel [source | sink] compare grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source | next=007 (1)]
        004: kCustomKernel [source | sink] act_kernel grid: [1, 1, 1]
        005: kDynamicSliceFusion [source | sink] params=1, results=1
            006: kCopy [source | sink] kCopy
    007: kConvolution [prev=000 (1) | sink] kConvolution
    008: kWhile [prev=007 (1) | next=012 (1)]
condition:
        009: kCustomKernel [source | sink] compare grid: [1, 1, 1]
      body:
        010: kCustomKernel [source | sink] learn_kernel grid: [1, 1, 1]
        011: kCopy [source | sink] kCopy
    012: kConditional [prev=008 (1) | sink]
        013: kCustomKernel [source | sink] branch grid: [1, 1, 1]
000: kCommandBuffer [prev=002 (1) | sink]
    014: kCustomKernel [source | sink] after grid: [1, 1, 1]
"""
NAMES = {2: "while.1", 4: "fusion.1", 6: "copy.1", 7: "conv.1", 8: "while.2", 10: "fusion.2",
         11: "copy.2", 13: "fusion.3"}  # fmt: skip
METADATA = "\n".join(
    f'thunk_info {{\n profile_annotation: "{name}"\n thunk_id: {index}\n}}'
    for index, name in NAMES.items()
)
HLO = """
  %while.1 = (s32[]) while(%tuple.1), backend_config={"known_trip_count":{"n":"11"}}
  %fusion.1 = f32[] fusion(%a), metadata={op_name="jit(chunk)/while/body/act/add"}
  %copy.1 = f32[] copy(%a)
  %conv.1 = f32[] convolution(%a), metadata={op_name="jit(chunk)/while/body/transpose(learn)/dot"}
  %while.2 = (s32[]) while(%tuple.2), backend_config={"known_trip_count":{"n":"4"}}
  ROOT %fusion.2 = f32[] fusion(%a), metadata={op_name="jit(chunk)/while/body/learn/mul"}
  %copy.2 = f32[] copy(%a)
  %fusion.3 = f32[] fusion(%a), metadata={op_name="jit(chunk)/while/body/cond/neg"}
"""


def test_the_launches_of_an_iteration_are_counted_by_kind_and_region():
    counts = count_iteration(parse_thunks(SEQUENCE, METADATA, HLO), 11, REGIONS)
    assert counts == Counts(
        # act_kernel, the copy in the graph, the convolution, 4 x (learn_kernel, copy), the branch.
        kernels=12,
        copies=5,
        graphs=1,
        eager=10,
        updates=1,
        syncs=1,  # of the conditional; the loop's length is known
        parts={"act": 1, CARRY: 5, "learn": 5, REST: 1},
        loops=[Loop("learn", 4, 2)],
    )


def test_a_loop_of_unknown_length_counts_its_condition_and_a_wait_of_the_host():
    hlo = HLO.replace('"known_trip_count":{"n":"4"}', "")
    counts = count_iteration(parse_thunks(SEQUENCE, METADATA, hlo), 11, REGIONS)
    assert counts.loops == [Loop("learn", None, 3)]
    assert (counts.kernels, counts.syncs) == (7, 2)


def test_a_program_without_the_loop_over_iterations_is_rejected():
    with pytest.raises(ValueError, match="iterations=12: must be the passes of a loop"):
        count_iteration(parse_thunks(SEQUENCE, METADATA, HLO), 12, REGIONS)
    with pytest.raises(ValueError, match="sequence: must have at least one thunk"):
        parse_thunks("", METADATA, HLO)


def test_every_program_has_a_valid_configuration_and_every_bar_a_program():
    for case in CASES.values():
        assert case.config().devices == case.devices
    assert set(BARS) <= set(CASES)
    with pytest.raises(ValueError, match="only='dqn': must be one of cartpole, "):
        selected(["dqn"])


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason=missing_packages())
@pytest.mark.parametrize("name", [*BARS, "cartpole-devices-2", "cartpole-population-64"])
def test_no_count_exceeds_the_recorded_one_by_more_than_a_twentieth(name):
    recorded = json.loads((ROOT / RECORDED).read_text())
    if recorded["versions"]["jaxlib"] != jax.lib.__version__:
        pytest.skip(f"recorded with jaxlib {recorded['versions']['jaxlib']}")
    counts, limits = count_case(CASES[name]), recorded["programs"][name]
    risen = {total: (limits[total], counts[total]) for total in TOTALS
             if counts[total] > 1.05 * limits[total]}  # fmt: skip
    assert risen == {}
