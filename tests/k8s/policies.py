"""Who reaches whom by the NetworkPolicies of a namespace: what a network plug-in makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.k8s.rendering import Manifest


@dataclass(frozen=True)
class Pod:
    """Its labels, and those of its namespace where that is another one than the policies'."""

    labels: Mapping[str, str]
    elsewhere: Mapping[str, str] | None = None


def lets_through(manifests: Sequence[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Whether the policies of the one who calls and those of the one who is called both do."""
    policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    goes_out = _allows(policies, ("Egress", "egress", "to"), source, target, port)
    return goes_out and _allows(policies, ("Ingress", "ingress", "from"), target, source, port)


def _allows(policies: Sequence[Manifest], way: tuple[str, str, str], own: Pod, other: Pod, port: int) -> bool:
    kind, rules, peers = way
    of_own = [
        policy for policy in policies if kind in policy["policyTypes"] and _selects(policy["podSelector"], own.labels)
    ]
    if own.elsewhere is not None or not of_own:
        return True
    return any(
        port in [entry["port"] for entry in rule.get("ports", [{"port": port}])]
        and any(_is_of(peer, other) for peer in rule[peers])
        for policy in of_own for rule in policy.get(rules, [])
    )  # fmt: skip


def _is_of(peer: Manifest, pod: Pod) -> bool:
    if "ipBlock" in peer:
        return True  # ours name every address
    if "namespaceSelector" in peer:
        is_there = pod.elsewhere is not None and _selects(peer["namespaceSelector"], pod.elsewhere)
    else:
        is_there = pod.elsewhere is None
    return is_there and _selects(peer.get("podSelector", {}), pod.labels)


def _selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] in ("In", "Exists"), f"{rule['operator']} is none that ours have"
        value = labels.get(rule["key"])
        if value is None or value not in rule.get("values", [value]):
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
