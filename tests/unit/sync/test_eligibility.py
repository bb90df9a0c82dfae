"""Which signed release applies here now, and why not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.assignment import Assigned
from appliance.contract.release import (
    BlobRef,
    Facts,
    FileRole,
    Needs,
    Release,
    ReleaseFile,
    Strategy,
)
from appliance.contract.standing import Revoked, Standing
from appliance.domain import Digest
from appliance.sync.deployment import Serving
from appliance.sync.editions import Room
from appliance.sync.eligibility import (
    Attempts,
    Eligible,
    Local,
    Refusal,
    Refused,
    Wish,
    digest_of,
    eligible,
)

HEX = "ab" * 32
DIGEST = digest_of(HEX)
NOW = 1_800_000_000_000
ASSIGNED = Assigned(model="m", version="2", release_sha256=HEX)
BLOB = BlobRef(sha256="0" * 64, length=1)
RELEASE = Release(
    schema=1,
    model="m",
    version="2",
    sequence=2,
    issued_utc_ms=0,
    files=(ReleaseFile(name="m.gguf", role=FileRole.WEIGHTS, blob=BLOB, chunk_map=BLOB),),
    facts=Facts(
        architecture="llama",
        parameters_count=1,
        quantisation="Q8_0",
        context_train_tokens=1,
        tokenizer_sha256="a" * 64,
    ),
    needs=Needs(appliance_min="0.1.0", memory_bytes=100),
)
LOCAL = Local(appliance_version="0.1.0", memory_bytes=100)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision is made from."""

    assigned: Assigned = ASSIGNED
    offer: tuple[Release, Digest] | None = (RELEASE, DIGEST)
    standing: Standing | None = None
    serving: Serving = Serving(model="m", active=Digest("old"))
    wish: Wish = Wish()
    local: Local = LOCAL
    is_halted: bool = False
    utc_ms: int = NOW

    def decide(self) -> Eligible | Refused:
        return eligible(
            self.assigned,
            self.offer,
            self.standing,
            self.serving,
            self.wish,
            self.local,
            is_halted=self.is_halted,
            utc_ms=self.utc_ms,
        )


def local(**fields: object) -> Local:
    return msgspec.structs.replace(LOCAL, **fields)


def standing(**fields: object) -> Standing:
    return msgspec.structs.replace(Standing(schema=1, model="m"), **fields)


OTHER = msgspec.structs.replace(RELEASE, model="n")
LATER = msgspec.structs.replace(ASSIGNED, not_before_utc_ms=NOW + 1)
CASES = {
    Refusal.UNSIGNED: Case(offer=None),
    Refusal.NOT_AS_ASSIGNED: Case(offer=(RELEASE, Digest("sha256:" + "cd" * 32))),
    Refusal.LOCAL_NAME: Case(local=local(local_names=frozenset({"m"}))),
    Refusal.BELOW_FLOOR: Case(standing=standing(floor_sequence=3)),
    Refusal.REVOKED: Case(
        standing=standing(revoked=(Revoked(version="2", release_sha256=HEX, reason="it lies"),))
    ),
    Refusal.APPLIANCE_TOO_OLD: Case(local=local(appliance_version="0.0.9")),
    Refusal.TOO_LITTLE_MEMORY: Case(local=local(memory_bytes=99)),
    Refusal.NO_SUCH_EDITION: Case(local=local(room=Room(wanted="Q2_K"))),
    Refusal.QUARANTINED: Case(local=local(quarantined={DIGEST: "it failed"})),
    Refusal.ATTEMPTS_SPENT: Case(local=local(attempts={DIGEST: Attempts(count=3)})),
    Refusal.PINNED: Case(wish=Wish(pinned="1")),
    Refusal.HELD: Case(wish=Wish(is_held=True)),
    Refusal.HALTED: Case(is_halted=True),
    Refusal.NOT_BEFORE: Case(assigned=LATER),
    Refusal.TOO_SOON: Case(
        local=local(attempts={DIGEST: Attempts(count=2, ended_utc_ms=NOW - 7_199_999)})
    ),
    Refusal.ACTIVE: Case(serving=Serving(model="m", active=DIGEST)),
}


def test_what_nothing_speaks_against_applies() -> None:
    decision = Case().decide()
    assert isinstance(decision, Eligible)
    assert (decision.release, decision.digest, decision.strategy) == (RELEASE, DIGEST, Strategy())


@pytest.mark.parametrize("refusal", list(Refusal))
def test_each_reason_refuses_by_itself(refusal: Refusal) -> None:
    decision = CASES[refusal].decide()
    assert isinstance(decision, Refused)
    assert decision.refusal is refusal
    assert decision.reason


def test_what_passes_by_itself_says_when() -> None:
    decision = CASES[Refusal.NOT_BEFORE].decide()
    assert isinstance(decision, Refused)
    assert decision.retry_utc_ms == NOW + 1
    soon = CASES[Refusal.TOO_SOON].decide()
    assert isinstance(soon, Refused)
    assert soon.retry_utc_ms == NOW + 1


def test_a_release_of_another_model_under_the_name_is_refused() -> None:
    decision = Case(offer=(OTHER, DIGEST)).decide()
    assert isinstance(decision, Refused)
    assert decision.refusal is Refusal.NOT_AS_ASSIGNED


def test_a_floor_once_learnt_holds_without_the_document() -> None:
    decision = Case(serving=Serving(model="m", floor_sequence=3)).decide()
    assert isinstance(decision, Refused)
    assert decision.refusal is Refusal.BELOW_FLOOR


def test_a_pin_lets_its_own_version_in() -> None:
    assert isinstance(Case(wish=Wish(pinned="2")).decide(), Eligible)


def test_the_site_only_adds_care_to_a_signed_strategy() -> None:
    signed = Strategy(needs_approval=False, stop_then_start=True)
    case = Case(assigned=msgspec.structs.replace(ASSIGNED, strategy=signed))
    decision = case.decide()
    assert isinstance(decision, Eligible)
    assert not decision.strategy.stop_then_start
    careful = Case(
        assigned=case.assigned, local=local(needs_approval=True, may_stop_first=True)
    ).decide()
    assert isinstance(careful, Eligible)
    assert (careful.strategy.needs_approval, careful.strategy.stop_then_start) == (True, True)


@pytest.mark.parametrize(
    ("version", "is_eligible"),
    [
        ("0.1.0", True),
        ("0.1", False),
        ("0.1.1rc1", False),
        ("0.2", True),
        ("1.0.0", True),
        ("", False),
    ],
)
def test_versions_of_the_program_are_compared_by_numbers(
    version: str, *, is_eligible: bool
) -> None:
    decision = Case(local=local(appliance_version=version)).decide()
    assert isinstance(decision, Eligible) == is_eligible


@given(st.lists(st.sampled_from(list(Refusal)), min_size=1, unique=True))
def test_any_mix_of_reasons_refuses_by_one_of_them(reasons: list[Refusal]) -> None:
    merged = Case()
    for reason in reasons:
        case = CASES[reason]
        fields = {
            name: getattr(case, name)
            for name in Case.__struct_fields__
            if getattr(case, name) != getattr(Case(), name)
        }
        merged = msgspec.structs.replace(merged, **fields)
    decision = merged.decide()
    assert isinstance(decision, Refused)
    assert decision.refusal in reasons
