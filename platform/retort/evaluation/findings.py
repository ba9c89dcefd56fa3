"""Plain statements about an evaluation, the unwelcome ones too."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from retort.evaluation.controls import agreed_control, control
from retort.evaluation.finding import Finding, Tone, all_of, listed
from retort.evaluation.metrics import BY_FIELD, Metric, metric_of_field
from retort.evaluation.noise_floor import is_equal, sentence
from retort.evaluation.verdicts import (
    deeds_of,
    interval_of,
    is_margin_late,
    margin_of,
    span_of,
    verdict_of,
)

ToldAs = Literal["asked", "at_best", "untouched"]
"""Why two systems are compared: the run file asks for it; it asks for the same pair, which is compared at each one's
best temperature, too; or one is the target's model untouched, and the student should be nearer to the target."""
AT_BEST = "@best"
"""Behind the name of a system that is decoded at its best temperature."""


def find(
    systems: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    recognisers: Sequence[Mapping[str, Any]] = (),
    floor: Mapping[str, Any] | None = None,
) -> tuple[Finding, ...]:
    """State what the comparisons show, pair by pair, and what they do not.

    Where several recognisers judged a pair, one finding says where they agree. Speeds that differ by no more than the
    noise floor ``floor`` (``speed_noise_floor`` of a summary) are told as equal.
    """
    roles = {system["name"]: system["role"] for system in systems}
    found = [_size(systems), *_who_listened(recognisers)]
    together: dict[_Asked, list[Mapping[str, Any]]] = {}
    for row in comparisons:
        if row["is_asked_for"]:
            together.setdefault(_asked(row), []).append(row)
    judged = {key: _found_by(rows, roles) for key, rows in together.items()}
    temperatures = {system["name"]: system.get("temperature") for system in systems}
    failures = _failures(comparisons, temperatures, roles)
    told = set()
    for row in comparisons:
        key = _asked(row)
        if _told_as(row) == "untouched":
            found.append(_untouched(row))
        elif row["is_asked_for"]:
            if key not in told and _told_as(row) == "asked":
                found.append(_at_both(key, judged, temperatures))
            told.add(key)
        elif row["metric"] == "failure_rate":
            found += failures.get(key, ())
        elif metric_of_field(row["metric"]).better is None:
            found += _taken_away(row, roles)
    found += _costs(systems, comparisons, floor)
    if floor is not None:
        found.append(Finding("neutral", sentence(floor)))
    missing = {s["name"]: s["failures"].get("missing", 0) + s["failures"].get("error", 0) for s in systems}
    found += [
        Finding("bad", f"{name} delivered no audio for {count} of its utterances; each counts as a failure.")
        for name, count in missing.items()
        if count
    ]
    return tuple(found)


_Asked = tuple[str, str, str, ToldAs]


def _told_as(row: Mapping[str, Any]) -> ToldAs:
    told_as: ToldAs = row.get("told_as", "asked")
    return told_as


def _asked(row: Mapping[str, Any]) -> _Asked:
    return row["a"], row["b"], row["metric"].partition("@")[0], _told_as(row)


def _at_both(key: _Asked, judged: Mapping[_Asked, Finding], temperatures: Mapping[str, float | None]) -> Finding:
    """What is found of a pair at equal settings and, where temperatures were chosen, at each one's best as well."""
    a, b, _, _ = key
    best = _at_best(key, temperatures)
    plain, other = judged[key], judged.get(best)
    if other is None:
        return plain
    own = {temperatures[a], temperatures[b]}
    settings = f"equal temperature ({own.pop():g})" if len(own) == 1 and None not in own else "the file's settings"
    pairs = zip((a, b), best[:2], strict=True)
    each = ", ".join(f"{name} {t:g}" for name, name_at_best in pairs if (t := temperatures[name_at_best]) is not None)
    tone = _tone_of_both(plain.tone, other.tone)
    text = f"At {settings}: {plain.text} At each one's best temperature ({each}): {other.text}"
    figures = (f"at {settings}: {'; '.join(plain.figures)}", f"at each one's best: {'; '.join(other.figures)}")
    return Finding(tone, text, figures)


def _tone_of_both(one: Tone, other: Tone) -> Tone:
    return one if one == other else "bad" if "bad" in (one, other) else "neutral"


def _at_best(key: _Asked, temperatures: Mapping[str, float | None]) -> _Asked:
    """What a pair is called where each is at its best temperature."""
    a, b, metric, _ = key
    best = [f"{name}{AT_BEST}" if f"{name}{AT_BEST}" in temperatures else name for name in (a, b)]
    return best[0], best[1], metric, "at_best"


def _untouched(row: Mapping[str, Any]) -> Finding:
    """A student that is no nearer to the target than the target's own model untouched has moved for nothing."""
    a, b, metric = row["a"], row["b"], metric_of_field(row["metric"])
    span = span_of(row, metric)
    if row["difference"] >= 0.0:
        return Finding("bad", f"{b} is no nearer to the target than {a}, an untouched copy.", (span,))
    if verdict_of(row) == "better":
        return Finding("good", f"{b} is nearer to the target than {a}, an untouched copy.", (span,))
    why = "n too small to judge" if row["ci95"] is None else "which may be chance"
    return Finding("neutral", f"{b} is nearer to the target than {a}, an untouched copy, {why}.", (span,))


def _size(systems: Sequence[Mapping[str, Any]]) -> Finding:
    utterances = systems[0]["utterances"]
    few = systems[0]["wer_ci95"] is None
    text = f"{utterances} utterances, {len(systems)} systems."
    return Finding("bad" if few else "neutral", text + (" n too small for intervals." if few else ""))


def _costs(
    systems: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]], floor: Mapping[str, Any] | None
) -> list[Finding]:
    """What students cost beside the deeper teachers that they are compared with: size, speed, training."""
    by_name = {system["name"]: system for system in systems}
    asked = [row for row in comparisons if _told_as(row) == "asked"]
    pairs = {(row["a"], row["b"]): (by_name[row["a"]], by_name[row["b"]]) for row in asked}
    return [
        Finding("neutral", f"{b['name']} beside {a['name']}: {_cost(b, a, floor)}.")
        for a, b in pairs.values()
        if a["role"] == "teacher"
        and b["role"] == "student"
        and 0 < (b.get("num_layers") or 0) < (a.get("num_layers") or 0)
    ]


def _cost(student: Mapping[str, Any], teacher: Mapping[str, Any], floor: Mapping[str, Any] | None) -> str:
    parts = [f"{student['num_layers']} of {teacher['num_layers']} layers"]
    for field, text in (("parameters", "of the parameters"), ("training_tokens", "of its training tokens")):
        if student.get(field) and teacher.get(field):
            parts.append(f"{100.0 * student[field] / teacher[field]:.1f} % {text}")
    if student.get("tokens_per_second") and teacher.get("tokens_per_second"):
        faster = student["tokens_per_second"] / teacher["tokens_per_second"]
        with_codec = teacher["rtf"] / student["rtf"]
        parts.append(_times(faster, "the speed of decoding", is_equal(floor, "tokens_per_second", faster)))
        parts.append(_times(with_codec, "with the codec", is_equal(floor, "rtf", with_codec)))
    return ", ".join(parts)


def _times(ratio: float, what: str, is_noise: bool) -> str:
    return f"{ratio:.2f} times {what}{' (equal: within the noise floor)' if is_noise else ''}"


def _found_by(rows: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> Finding:
    """What one pair's rows of one metric say: the first recogniser's own, or that of several, by their labels."""
    labelled = [row for row in rows if "@" in row["metric"]]
    return _agreed(labelled, roles) if len(labelled) > 1 else _judged(rows[0], roles)


def _judged(row: Mapping[str, Any], roles: Mapping[str, str], margin: str | None = None) -> Finding:
    """What one comparison says; ``margin`` is how its margin is called, where its own name for it does not do."""
    a, b, metric = row["a"], row["b"], metric_of_field(row["metric"])
    verdict, span = verdict_of(row), span_of(row, metric)
    if verdict == "too few":
        return Finding("neutral", f"{b} against {a}: n too small to judge.", (span,))
    if {roles[a], roles[b]} == {"control", "student"}:
        return control(row, span, roles, verdict)
    better, worse = deeds_of(metric)
    margin = margin_of(row, metric) if margin is None else margin
    match verdict:
        case "better":
            return Finding("good", f"{b} {better} {a}.", (span,))
        case "worse within the margin":
            return Finding("neutral", f"{b} {worse} {a}, yet by less than {margin}.", (span,))
        case "worse":
            return Finding("bad", f"{b} {worse} {a}.", (span,))
        case "as good":
            tone: Tone = "neutral" if is_margin_late(row) else "good"
            return Finding(tone, f"{b} is as good as {a} by {metric.noun}, within {margin}.", (span,))
        case "open":
            shown = f"; that {b} stays within {margin} is not shown" if margin else ""
            return Finding("neutral", f"{b} and {a} cannot be told apart by {metric.noun}{shown}.", (span,))


def _agreed(rows: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> Finding:
    """One pair, judged by several recognisers: where they agree, and what only some of them support."""
    first = rows[0]
    a, b, metric = first["a"], first["b"], metric_of_field(first["metric"])
    base = BY_FIELD[metric.field.partition("@")[0]]
    judges = [(str(metric_of_field(row["metric"]).recogniser), verdict_of(row), row) for row in rows]
    spans = tuple(f"{label} {span_of(row, base)}" for label, _, row in judges)
    verdicts = {verdict for _, verdict, _ in judges}
    margin = _margin_of_all(rows, base)
    if {roles[a], roles[b]} == {"control", "student"} and "too few" not in verdicts:
        return agreed_control(judges, roles, spans)
    if len(verdicts) == 1:
        alone = _judged({**first, "metric": base.field}, roles, margin)
        agree = "" if verdicts == {"too few"} else f"; {all_of(judges)} recognisers agree"
        return Finding(alone.tone, f"{alone.text.removesuffix('.')}{agree}.", spans)
    better, worse = deeds_of(base)
    claims = {
        "better": f"{b} {better} {a}",
        "worse": f"{b} {worse} {a}",
        "worse within the margin": f"{b} {worse} {a}, yet by less than {margin}",
        "as good": f"{b} is as good as {a} within {margin}",
    }
    firm = {verdict: [label for label, own, _ in judges if own == verdict] for verdict in claims if verdict in verdicts}
    # Who finds it better finds it as good, too.
    alone_in = {verdict: "" if verdict == "as good" and "better" in firm else " alone" for verdict in firm}
    said = [f"{claims[verdict]} by {listed(labels)}{alone_in[verdict]}" for verdict, labels in firm.items()]
    opposed = "better" in firm and ("worse" in firm or "worse within the margin" in firm)
    if opposed:
        return Finding("bad", f"The recognisers contradict each other: {', but '.join(said)}.", spans)
    others = [label for label, own, _ in judges if own not in claims]
    rest = f"; by {listed(others)} this is not shown" if others else ""
    return Finding("neutral", f"Not all recognisers agree: {', and '.join(said)}{rest}.", spans)


def _margin_of_all(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """What the margin is called that all of them are held against, or that each one has."""
    if len({(row["margin"], is_margin_late(row)) for row in rows}) == 1:
        return margin_of(rows[0], metric)
    own = [f"{metric_of_field(row['metric']).recogniser} {margin_of(row, metric) or 'none'}" for row in rows]
    return f"each one's margin ({'; '.join(own)})"


def _taken_away(row: Mapping[str, Any], roles: Mapping[str, str]) -> list[Finding]:
    """What a student has less, or more, of than its teacher where neither side is the better one."""
    if (roles[row["a"]], roles[row["b"]]) != ("teacher", "student") or row["ci95"] is None:
        return []
    low, high = row["ci95"]
    if low <= 0.0 <= high:
        return []
    metric = metric_of_field(row["metric"])
    less = "less" if high < 0.0 else "more"
    ends = f"95 % interval {metric.signed(low)} to {metric.signed(high)} {metric.unit}"
    text = f"{row['b']} has {less} {metric.noun} than {row['a']}."
    return [Finding("bad", text, (f"{metric.signed(row['difference'])} ({ends})",))]


def _who_listened(recognisers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Recognisers that had a part in making what they judge, and whether anybody else listened."""
    parts = {r["label"]: r["made"] for r in recognisers if r["made"]}
    if not parts:
        return []
    told = "; ".join(f"{label} {_part_in(made)}" for label, made in parts.items())
    if len(parts) == len(recognisers):
        return [Finding("bad", f"No independent recogniser listened: {told}. A choice may be fitted to its judge.")]
    free = listed([r["label"] for r in recognisers if r["label"] not in parts])
    return [Finding("neutral", f"Of the recognisers, {told}; {free} had no part in the systems.")]


def _part_in(made: Mapping[str, str]) -> str:
    """What one recogniser did, each deed with the systems that it was done to."""
    deeds = dict.fromkeys(made.values())
    return ", ".join(f"{deed} of {listed([name for name in made if made[name] == deed])}" for deed in deeds)


def _failures(
    comparisons: Sequence[Mapping[str, Any]], temperatures: Mapping[str, float | None], roles: Mapping[str, str]
) -> dict[_Asked, list[Finding]]:
    """How much oftener b fails, by pair, and the same at each one's best temperature where that was judged."""
    failing = [row for row in comparisons if row["metric"] == "failure_rate"]
    asked_for = {_asked(row) for row in failing if row["is_asked_for"]}  # judged like any other metric
    rows = {_asked(row): row for row in failing if _asked(row) not in asked_for}
    told_before = {_at_best(key, temperatures) for key in rows if key[3] == "asked"}
    found = {}
    for key, row in rows.items():
        if key not in told_before:
            best = rows.get(_at_best(key, temperatures)) if key[3] == "asked" else None
            found[key] = _failures_of(row, best, roles)
    return found


def _failures_of(row: Mapping[str, Any], best: Mapping[str, Any] | None, roles: Mapping[str, str]) -> list[Finding]:
    told = [row] if best is None else [row, best]
    if not any(one["difference"] for one in told):
        return []
    (tone, text), *others = [_failing(one, roles) for one in told]
    for other_tone, other in others:
        tone, text = _tone_of_both(tone, other_tone), f"{text}; at each one's best temperature {other}"
    figures = [interval_of(one, BY_FIELD["failure_rate"]) for one in told]
    settings = ("", "at each one's best: ") if best is None else ("at the file's settings: ", "at each one's best: ")
    return [Finding(tone, f"{row['b']} fails {text}.", tuple(map("".join, zip(settings, figures, strict=False))))]


def _failing(row: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[Tone, str]:
    """Tone and words of a difference in failures; a control is there to fail more often than a student."""
    if not row["difference"]:
        return "neutral", f"as often as {row['a']}"
    better = row["difference"] < 0.0
    less = "less" if better else "more"
    text = f"{_points(abs(row['difference']))} points {less} often than {row['a']}"
    if row["ci95"] is not None and (row["ci95"][1] < 0.0 or row["ci95"][0] > 0.0):
        is_for_the_student = better != ((roles[row["a"]], roles[row["b"]]) == ("student", "control"))
        return "good" if is_for_the_student else "bad", text
    return "neutral", f"{text}, which may be chance"


def _points(fraction: float) -> str:
    return f"{100.0 * fraction:.1f}"
