"""Numbers of README and docs/ are what the benchmarks wrote."""

import json
from statistics import mean

from residual_peft.experiments import METHODS, Row
from residual_peft.reporting import HEADERS, markdown_table, table_cells
from tests.pages import ROOT, page, results


def short(share: float, digits: int) -> str:
    """A share as prose has it: .016."""
    return f"{share:.{digits}f}".removeprefix("0")


def test_what_is_said_of_heads_gains_words_and_epochs_was_measured() -> None:
    text = " ".join(page("analysis").split())
    mean = results("selection")["summary"]["mean"]
    left = [f"{mean[letter]['share_of_H']['0.1']:.0%}".replace("%", " %") for letter in "SR"]
    assert (
        f"{left[0]} of the accuracy of all heads is left; a random tenth leaves {left[1]}" in text
    )
    given = f"{mean['U|T']['share_of_H']['0.1']:.0%}".replace("%", " %")
    assert f"without labels, it is {given}" in text
    assert f"on {len(mean['U']['does_not_hold'])} of 30 counts" in text
    drops = [
        drop
        for task in results("selection")["tasks"].values()
        for ablation in ("zero", "mean")
        for drop in task[ablation]["largest drop by one head"].values()
    ]
    assert f"no single head is needed: the best cost {100 * max(drops):.0f} points" in text
    gains = results("gain_sense")["summary"]
    fixed = gains["fixed_ridge"]
    assert len(fixed["own_attribute_correlates_most"]) == 8
    assert "letter" not in fixed["own_attribute_correlates_most"]
    own = fixed["own_correlation"].values()
    assert f"Spearman {min(own):.2f} to {max(own):.2f}" in text
    assert len(gains["chosen_ridge"]["own_attribute_correlates_most"]) == 5
    hits = results("words")["dictionaries"]["centred"]["somp_hits"]["by_the_first_component"]
    hit = hits["share_from_0.3"]
    share, chance = hit["hit_rate"], hit["dealt_at_random"]
    assert f"in {100 * share:.0f} % of the cases, by chance {100 * chance:.0f} %" in text
    found = results("choosing")["mean"]
    right = f"{found['loss']:.2f} of other images right instead of {found['accuracy']:.2f}"
    assert right in " ".join(page("peft").split())
    assert found["loss"] >= found["accuracy, then loss"]


def scores_strangers_and_time() -> tuple[str, ...]:
    """What README sums up of them."""
    error, planted = (
        results("heads_trust")[what]["16"]["heads and MLPs"] for what in ("calibration", "labels")
    )
    stamps, real = results("strangers")["Tux Paint's stamps"], results("real_size")["fit"]
    between = "–".join(f"{end:.3f}" for end in stamps["interval"])
    return (
        f"calibration error of {short(error['head'], 3)} with 16 images per class, where zero-shot "
        f"has {short(error['zero-shot'], 3)};",
        f"precision {short(planted['precision'], 2)} and recall {short(planted['recall'], 2)}.",
        f"{stamps['images']} stamps in {stamps['classes']} classes, bundled model: "
        f"{stamps['test']:.3f} right (95 % interval {between}), always answering the largest "
        f"class {stamps['largest_class']:.3f}, zero-shot {stamps['zero_shot']:.3f}.",
        f"a fit of {real['images']:,} photos of 12 megapixels",
        f"took {real['seconds'] / 60:.0f} minutes on two cores, "
        f"{real['peak_share_mib'] / 1024:.1f} GiB of memory",
    )


def test_what_readme_sums_up_was_measured() -> None:
    heads, ours = results("heads"), "ridge, heads and MLPs"
    lead = {
        task: {
            shots: {name: row["points"] for name, row in rows.items() if "best rival" in name}
            for shots, rows in counts.items()
        }
        for task, counts in heads["paired"]["tasks"].items()
    }
    own = {shots: row[f"{ours}, less the best rival"] for shots, row in lead["handwriting"].items()}
    behind = [-x for shots in ("4", "8", "16") for x in lead["colors, inverted"][shots].values()]
    rows = heads["handwriting"]["images_per_class"]
    least, most = rows["4"][ours]["seconds"], rows["all"][ours]["seconds"]
    lora = [
        row["seconds"] for x in heads["lora"]["images_per_class"].values() for row in x.values()
    ]
    letters = [
        -points
        for task in ("letters, noisy", "letters, turned")
        for row in lead[task].values()
        for points in row.values()
    ]
    noisy = [
        row
        for row in map(json.loads, (ROOT / "benchmarks" / "bench_small.jsonl").open())
        if (row["data"], row["protocol"]) == ("digits-noisy", "16-shot")
    ]
    methods = {row["method"] for row in noisy}
    right = {m: mean(r["accuracy"] for r in noisy if r["method"] == m) for m in methods}
    frozen = max(share for method, share in right.items() if method not in TRAINED_BACKBONE)
    ahead = [100 * (right[method] - frozen) for method in TRAINED_BACKBONE]
    text = " ".join(page("README").split())
    for said in (
        f"{own['4']:.1f} points above the best rival on the embedding with 4 images per class,",
        f"images per class, {own['8']:.1f} with 8; with 4 to all of them {short(least, 2)} to "
        f"{most:.1f} s after the pass, where LoRA takes {min(lora):.0f} to {max(lora):.0f} s",
        f"is {min(behind):.0f} to {max(behind):.0f} points better with 4 to 16 images per class",
        f"rivals are ahead by up to {max(letters):.1f} points",
        "the best of them and the ridge on heads and MLPs are within 2 points of each other",
        f"{min(ahead):.0f} to {max(ahead):.0f} points above the best of what reads it as it is",
        *scores_strangers_and_time(),
    ):
        assert said in text, said
    for task in ("digits, noisy", "shapes, noisy", "digits, blurred"):
        assert all(abs(row[f"{ours}, less the best rival"]) < 2 for row in lead[task].values())


def test_the_table_of_speed_is_what_the_benchmark_wrote() -> None:
    found = results("speed")
    headers = ("what", "against", "asked", "reached", "holds")
    assert markdown_table(headers, found["table"]) in page("results")
    assert found["machine"]["processor"].split(",")[0] in page("results")
    assert len(found["table"]) == len(found["rows"])
    seconds, text = results("first_line")["seconds"], " ".join(page("commands").split())
    base = seconds.pop("importing torch, transformers, peft")
    first = [row["first"] for row in seconds.values()]
    said = f"after {min(first):.2f} to {max(first):.2f} s, where importing torch, transformers and"
    assert f"{said} PEFT takes {base['first']:.1f} s" in text
    assert f"complete after {seconds['look']['end']:.1f} s, a whole `fit` after" in text
    assert f"`fit` after {seconds['fit']['end']:.0f} s." in text


HEADS_ROWS = (
    "gains",
    "class means, embedding",
    "Tip-Adapter-F, embedding",
    "ProKeR, embedding",
    "GDA, embedding",
    "logistic regression, embedding",
    "ridge, embedding",
    "discriminant analysis, embedding",
    "ridge, heads",
    "ridge, heads and MLPs",
)
SHOTS = ("1", "4", "8", "16", "all")


def heads_table() -> str:
    """README's first table, from the benchmark's output."""
    found = results("heads")["handwriting"]
    rows = found["images_per_class"]
    best = {shots: max(rows[shots][name]["accuracy"] for name in HEADS_ROWS) for shots in SHOTS}
    lines = ["| method | " + " | ".join(SHOTS) + " |", "|---|" + "---:|" * len(SHOTS)]
    lines.append(f"| zero-shot | {found['zero_shot']:.3f} " + "| " * (len(SHOTS) - 1) + "|")
    for name in HEADS_ROWS:
        cells = [rows[shots][name]["accuracy"] for shots in SHOTS]
        shown = [
            f"**{cell:.3f}**" if cell == best[shots] else f"{cell:.3f}"
            for cell, shots in zip(cells, SHOTS, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lora = results("heads")["lora"]["images_per_class"]
    for place, rank in enumerate((8, 16)):
        name = f"LoRA r={rank}"
        cells = [f"{lora[s][name]['accuracy']:.3f}" if s in lora else "" for s in SHOTS]
        lines.insert(4 + place, f"| {name} on q, v | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_tables_of_methods_are_what_the_benchmarks_wrote() -> None:
    """README's first, what `fit` shows above it, and the demo's."""
    tables = [text for text in page("README").split("\n\n") if text.startswith("| method |")]
    assert tables == [heads_table()]
    *fits, chosen = (ROOT / "benchmarks" / "compare_digits.txt").read_text().splitlines()
    assert chosen.startswith("(* chosen by")
    assert "```text\n" + "\n".join(fits) + "\n```" in page("README")
    cells = table_cells(
        [Row(**row) for row in results("handwriting")["rows"]],
        {name: method.label for name, method in METHODS.items()},
    )
    assert markdown_table(HEADERS, cells) in page("results")
    for name, row in results("strangers").items():
        shares = [row[key] for key in ("largest_class", "zero_shot", "gains", "probe")]
        shown = [f"{row['images']:,}", str(row["classes"]), *(f"{share:.3f}" for share in shares)]
        test = f"{row['test']:.3f}, " + "–".join(f"{end:.3f}" for end in row["interval"])
        assert f"| {' | '.join([name, *shown, row['chosen'], test])} |" in page("results")
    bench = " ".join(page("bench").split())
    assert [
        said for said in (*said_of_the_backbone(), *said_of_the_vit()) if said not in bench
    ] == []


TRAINED_BACKBONE = {
    "full": "full fine-tuning of the image tower",
    "stream": "through the backbone on the same texts: gains in stream mode",
    "lora": "LoRA",
    "vera": "VeRA",
    "ia3": "IA3",
    "lora-output": "LoRA on the output projections with as many numbers",
}
FROZEN_BACKBONE = {
    "gains": "gains",
    "gains-adamw": "gains on texts alone",
    "residual": "the paper's ResiDual",
    "residual-star": "the paper's ResiDual*",
    "ridge": "ridge on the coordinates, of one pass and no step back",
}


def said_of_the_backbone() -> list[str]:
    """What docs/bench.md says of training it and of reading it as it is, 16 images per class."""
    lines = (ROOT / "benchmarks" / "bench_small.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["protocol"] == "16-shot"]

    def of(data: str) -> dict[str, str]:
        names = {row["method"] for row in rows if row["data"] == data}
        return {
            name: short(
                mean(r["accuracy"] for r in rows if (r["data"], r["method"]) == (data, name)), 3
            )
            for name in names
        }

    written, noisy = of("handwriting"), of("digits-noisy")
    trained = sorted(noisy[name] for name in TRAINED_BACKBONE if name != "stream")
    frozen = [noisy[name] for name in noisy if name not in TRAINED_BACKBONE]
    return [
        f'nothing that reads the frozen model is above {max(frozen)} ("Lin"; gains '
        f"{noisy['gains']}, ridge {noisy['ridge']}, a probe {noisy['logistic-embedding']})",
        f"gains in stream mode {noisy['stream']}, LoRA on the output projections, LoRA, VeRA, IA3 "
        f"and full fine-tuning between {trained[0]} and {trained[-1]}",
        *(
            f"| {label} | {written[name]} |"
            for name, label in (TRAINED_BACKBONE | FROZEN_BACKBONE).items()
        ),
    ]


THROUGH_THE_VIT = {
    "stream": "gains in stream mode",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "ia3": "IA3",
    "vera": "VeRA",
    "lora-output": "LoRA on the output projections with as many numbers",
    "ridge-heads": "ridge, heads",
    "ridge": "ridge, heads and MLPs",
    "proker": "ProKeR on coordinates",
    "logistic-embedding": "a probe",
    "gains": "gains",
    "residual": "the paper's ResiDual",
}


def said_of_the_vit() -> list[str]:
    """What it says of going back through a real one, and of how long all of it takes."""
    lines = (ROOT / "benchmarks" / "bench_vit_backwards.jsonl").read_text().splitlines()
    rows = {(row["data"], row["method"]): row for row in map(json.loads, lines)}
    shown = [
        f"| {label} | {short(rows['handwriting', name]['accuracy'], 3)} | "
        f"{short(rows['stamps', name]['accuracy'], 3)} | {rows['stamps', name]['trained']:,} |"
        for name, label in THROUGH_THE_VIT.items()
    ]
    hours = results("bench_hours")
    known = [hours[name] for name in ("bench_small", "bench_vit")]
    again = sum(one["told_as_committed"] for one in known)
    return [
        *shown,
        f"{sum(one['hours_of_all'] for one in hours.values()):.1f} hours of two cores",
        f"{again} of {sum(one['committed'] for one in known)}",
    ]


def tables_of_predict() -> list[str]:
    """The rows that docs/commands.md has of sets of classes and of none of these."""
    coverage, none = results("heads_trust")["coverage"], results("heads_trust")["none"]
    rows = {
        name: [coverage[shots]["heads and MLPs"][key] for shots in ("2", "4", "8", "16")]
        for name, key in (
            ("jackknife", "jackknife"),
            ("jackknife+", "jackknife+"),
            ("as many held-out images", "held-out"),
        )
    }
    lines = [f"| {name} | {' | '.join(short(x, 3) for x in row)} |" for name, row in rows.items()]
    for name, key in (
        ("letters among handwritten digits", "letters refused"),
        ("the world's letters among its digits", "world's letters refused"),
    ):
        cells = [none[shots]["heads and MLPs"][key] for shots in ("4", "8", "16", "60")]
        lines.append(f"| {name} | {' | '.join(short(x, 2) for x in cells)} |")
    alone = [short(none[shots]["embedding"]["letters refused"], 2) for shots in ("4", "8")]
    lines.append(
        f"the embedding alone refuses {alone[0]} of the letters with 4 and {alone[1]} with 8."
    )
    found = [row["heads and MLPs"] for row in results("heads_trust")["alarms"].values()]
    shares = [share for row in found for share in row.values()]
    lines.append(f"of other images {short(min(shares), 2)} to {short(max(shares), 2)}")
    return lines


def test_what_is_said_of_predict_and_export_was_measured() -> None:
    found, text = results("export_onnx"), page("commands")
    assert [line for line in tables_of_predict() if line not in text] == []
    lines = [
        "| model | file | largest difference | 1 image | 8 images |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in found["rows"].items():
        speeds = [f"{row[f'batch_{count}']['onnxruntime_to_torch']:.2f}" for count in (1, 8)]
        cells = [name, f"{row['megabytes']:.1f} MB", f"{row['probability_difference']:.1e}"]
        lines.append("| " + " | ".join([*cells, *speeds]) + " |")
    assert "\n".join(lines) in text
    sizes = {name: item["megabytes"] for name, item in found["installed"].items()}
    none = results("heads_trust")["none"]
    in_embedding, with_coordinates = (
        " / ".join(short(none[shots][kind]["false alarms"], 3) for shots in ("4", "16", "60"))
        for kind in ("embedding", "heads and MLPs")
    )
    left_out = f"left-out ones {in_embedding} in the embedding and {with_coordinates} where"
    assert left_out in page("method")
    text = " ".join(text.split())
    assert f"{sizes['to answer with onnxruntime']:,} MB in place of" in text
    assert f"in place of {sizes['to answer with torch']:,} MB" in text
    assert f"the extra is {sizes['to export, on top']:,} MB" in text
