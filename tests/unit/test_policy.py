"""Policies are read, shown and refused."""

import copy
import pickle

import pytest

from shadow_mmu import ConfigError, Policy
from shadow_mmu.policy import LOCK_KINDS, with_locks

CHOICES = r"expected 'locked', 'seed' or 'lru:N' with N = 0..16"


@pytest.mark.parametrize(
    "text",
    [
        "locked",
        "seed",
        *(f"lru:{n}" for n in range(17)),
        "seed,lock=ticket",
        "lru:3,lock=rwlock",
        "seed,link=kvm",
        "lru:0,lock=ttas,link=full-sync",
        "lru:3,pae_roots=cached",
        "seed,lock=ticket,link=kvm,pae_roots=cached",
        "seed,mmu=tdp",
        "lru:1,lock=rwlock,link=kvm,pae_roots=cached,mmu=tdp",
        "locked,host=pae",
        "seed,lock=ticket,link=kvm,pae_roots=cached,host=pae",
    ],
)
def test_a_policy_reads_what_it_prints(text: str) -> None:
    policy = Policy.parse(text)
    assert str(policy) == text
    assert eval(repr(policy)) == policy  # noqa: S307  our own repr


@pytest.mark.parametrize(
    "text",
    [
        "lru:17",
        "lru:-1",
        "lru:x",
        "lru:",
        "lru",
        "lru:03",
        "lru:1.0",
        "lru:٣",
        "lru:99999999999",
        "LOCKED",
        "",
        " seed",
        3,
        None,
        b"seed",
    ],
)
def test_what_is_no_policy_is_refused_with_the_choices(text: object) -> None:
    with pytest.raises(ConfigError, match=CHOICES) as caught:
        Policy.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed,lock=mcs", r"no lock 'mcs': expected queued, ticket, ttas, mutex or rwlock"),
        ("seed,lock=", r"no lock ''"),
        ("seed,lock", r"no lock ''"),
        (
            "seed,Lock=ticket",
            r"no option 'Lock=ticket' in policy 'seed,Lock=ticket': expected lock, link, pae_roots, mmu, host with",
        ),
        ("seed,link=upstream", r"no link 'upstream': expected mark-first, kvm or full-sync"),
        ("seed,mmu=tdp,host=pae", r"mmu=tdp on host=pae: .* four levels.*expected host=64, or mmu=shadow"),
        ("seed,host=32", r"no host '32': expected 64 or pae"),
        ("seed,pae_roots=locked", r"no pae_roots 'locked': expected uncached or cached"),
        ("seed,mmu=ept", r"no mmu 'ept': expected shadow or tdp"),
        ("seed,", r"no option ''"),
        ("seed,lock=ticket,lock=ttas", r"'lock' is given twice"),
        ("lock=ticket", CHOICES),
    ],
)
def test_a_wrong_option_is_refused_with_the_choices(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Policy.parse(text)


def test_the_default_lock_is_queued_and_is_not_printed() -> None:
    assert Policy.parse("lru:3,lock=queued") == Policy.lru(3)
    assert str(Policy.parse("seed,lock=queued")) == "seed"
    assert Policy.locked(lock="ttas").name == "locked"
    assert Policy.seed(lock="ttas") != Policy.seed()
    with pytest.raises(ConfigError, match="no lock None: expected queued"):
        Policy.lru(3, lock=None)  # type: ignore[arg-type]


def test_the_default_link_marks_first_and_options_are_printed_in_one_order() -> None:
    assert Policy.parse("lru:3,link=mark-first") == Policy.lru(3)
    assert str(Policy.parse("seed,link=kvm,lock=ticket")) == "seed,lock=ticket,link=kvm"
    assert Policy.seed(link="kvm") != Policy.seed()
    assert Policy.parse("seed,mmu=shadow") == Policy.seed() != Policy.seed(mmu="tdp")


def test_e017_roots_of_four_entries_are_cached_where_they_are_to_and_there_is_a_cache() -> None:
    assert Policy.parse("lru:3,pae_roots=uncached") == Policy.lru(3)
    assert [Policy.parse(f"{name},pae_roots=cached").caches_pae_roots for name in ("locked", "seed", "lru:0")] == [
        False,
        True,
        True,
    ]
    assert not Policy.lru(3).caches_pae_roots


def test_locks_multiply_policies() -> None:
    policies = [Policy.seed(), Policy.lru()]
    assert with_locks(policies, []) == policies
    assert [str(one) for one in with_locks(policies, ["queued", "ttas"])] == [
        "seed",
        "seed,lock=ttas",
        "lru:3",
        "lru:3,lock=ttas",
    ]
    for locks, expected in ((["spin"], "no lock 'spin': expected"), (["ttas", "ttas"], "'ttas' is given twice")):
        with pytest.raises(ConfigError, match=expected):
            with_locks(policies, locks)
    with pytest.raises(ConfigError, match="'seed,lock=ticket' names a lock"):
        with_locks([Policy.seed(lock="ticket")], ["queued"])


def test_a_policy_given_twice_is_refused() -> None:
    assert Policy.parse_list(["seed", "locked"]) == [Policy.seed(), Policy.locked()]
    with pytest.raises(ConfigError, match="'lru:3' is given twice"):
        Policy.parse_list(["lru:3", "seed", "lru:3"])


@pytest.mark.parametrize(
    ("kind", "previous"), [("locked", 1), ("seed", 0), ("seed", 2), ("lru", 17), ("lru", -1), ("lru", True), ("x", 0)]
)
def test_parts_that_do_not_go_together_are_refused(kind: str, previous: int) -> None:
    with pytest.raises(ConfigError, match=r"previous roots|no policy"):
        Policy(kind, previous)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["locked", "lru:7", "seed,lock=rwlock"])
def test_a_policy_survives_pickling_and_copying(text: str) -> None:
    policy = Policy.parse(text)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(policy, protocol))  # noqa: S301  our own bytes
        assert back == policy
        assert hash(back) == hash(policy)
    assert copy.deepcopy(policy) == policy


def test_policies_with_another_lock_are_other_policies() -> None:
    policies = with_locks([Policy.seed(), Policy.lru(1)], LOCK_KINDS)
    assert len(set(policies)) == len(policies) == 10
    assert Policy.parse("seed,lock=queued") in policies


def test_policies_are_values() -> None:
    assert len({Policy.lru(3), Policy.parse("lru:3"), Policy.lru()}) == 1
    with pytest.raises(AttributeError):
        Policy.seed().previous = 2  # type: ignore[misc]
