"""The page of an audit: one HTML file that shows audit.json, with pictures inside it and without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.report.document import Numbers, render_document, show_cards, show_figure, show_picture, show_table
from resnet_train.report.figures import draw_class_counts
from resnet_train.report.markup import escape, name, name_compared
from resnet_train.text import counted

TABLES = {"labels": "labels.csv", "duplicates": "duplicates.csv", "pictures": "pictures.csv"}
WEAK = (
    "The networks learned little, so the list below says more about them than about the labels: audit again with more "
    "--epochs or another --config."
)
KINDS = {
    "unreadable": "can't be read",
    "size": "odd size",
    "shape": "odd shape",
    "mode": "rare mode",
    "blank": "blank",
}


@dataclass(frozen=True)
class AuditPictures:
    """The pictures of the findings, PNG or JPEG: those of each group of duplicates and of each likely label error."""

    groups: Sequence[Sequence[bytes]]
    errors: Sequence[bytes]


def render_audit(report: dict[str, Any], pictures: AuditPictures) -> str:
    """Return the page.

    Args:
        report: what audit.json holds. Each number on the page is a `<data>` element that names its place there.
        pictures: those of its findings, in order.
    """
    page = _AuditPage(report)
    sections = [
        ("labels", "Likely label errors", page.show_labels(pictures.errors)),
        ("duplicates", "Duplicates", page.show_duplicates(pictures.groups)),
        ("classes", "Classes", page.show_classes()),
        ("pictures", "Picture files", page.show_pictures()),
        ("reproduce", "Reproduce", page.show_command()),
    ]
    header = f"<h1>Audit of {name(report['title'])}</h1>{page.show_subject()}{page.show_headline()}"
    return render_document(f"Audit of {report['title']}", header, sections)


class _AuditPage(Numbers):
    """The sections of the page, each HTML text that is empty if there is nothing to show."""

    def show_subject(self) -> str:
        """Return what was audited, and when."""
        counts = " · ".join(
            f"{self.number(f'splits.{i}.n', 'count')} {escape(part['split'])} images"
            for i, part in enumerate(self.report["splits"])
        )
        classes = counted(len(self.report["classes"]), "class")
        return (
            f'<p class="muted">{counts} · {classes} · {escape(self.report["date"])}</p>'
            f"<p>Nothing was changed. The tables next to this page have all findings: "
            f"{', '.join(f'<code>{table}</code>' for table in TABLES.values())}.</p>"
        )

    def show_headline(self) -> str:
        """Return how much was found."""
        report, cards = self.report, []
        if report["labels"] is not None:
            cards += [
                ("likely label errors", self.number(f"labels.num_errors.{split}", "count"), f"of {split} images")
                for split in report["labels"]["num_errors"]
            ]
        cards += [
            ("equal images", self.number("duplicates.num_equal", "count"), "copies of another one"),
            ("near duplicates", self.number("duplicates.num_near_pairs", "count"), "pairs"),
        ]
        cards += [
            (
                "leaks",
                self.number(f"duplicates.num_leaked.{split}", "count"),
                f"{split} images that resemble training images",
            )
            for split in report["duplicates"]["num_leaked"]
        ]
        cards.append(("conflicts", self.number("duplicates.num_conflicts", "count"), "groups with different labels"))
        cards += [
            (KINDS[kind], self.number(f"num_problems.{kind}", "count"), "files" if kind == "unreadable" else "pictures")
            for kind in report["num_problems"]
        ]
        return show_cards(cards)

    def show_labels(self, pictures: Sequence[bytes]) -> str:
        """Return the images whose label is probably wrong."""
        labels = self.report["labels"]
        if labels is None:
            return f"<p>Labels were not checked: {escape(self.report['no_labels'])}.</p>"
        splits = ", ".join(
            f"{self.number(f'labels.num_errors.{split}', 'count')} of "
            f"{self.number(f'labels.num_checked.{split}', 'count')} {split} images "
            f"(accuracy {self.number(f'labels.accuracy.{split}')})"
            for split in labels["num_checked"]
        )
        plural = "s" * (labels["epochs"] != 1)
        text = (
            f"<p>{self.number('labels.folds', 'count')} networks ({name(labels['arch'])}, "
            f"{self.number('labels.epochs', 'count')} epoch{plural}) were trained, each without a part of the training "
            f"images, and each image was predicted by networks that were not trained on it. The list has the images "
            f"for which these predict another class with at least the confidence that they have, on average, for that "
            f"class's own images: {splits}. Look before you relabel: the later ones are mostly mistakes of the "
            f"networks.</p>"
        )
        if labels["is_weak"]:
            text += f'<p class="warning">{WEAK}</p>'
        cards = []
        for i, (error, data) in enumerate(zip(labels["errors"], pictures)):
            image = error["image"]
            cards.append(
                f'<div class="finding">{show_picture(data, image["image"])}'
                f"<p>label <b>{name(image['label'])}</b> {self.number(f'labels.errors.{i}.self_confidence')}<br>"
                f"or <b>{name(error['suggested'])}</b> {self.number(f'labels.errors.{i}.confidence')}<br>"
                f"<small>{_place(image)}</small></p></div>"
            )
        return text + f'<div class="findings small">{"".join(cards)}</div>'

    def show_duplicates(self, pictures: Sequence[Sequence[bytes]]) -> str:
        """Return the groups of equal and nearly equal images."""
        found = self.report["duplicates"]
        if not found["num_groups"]:
            return "<p>No image occurs twice.</p>"
        plural = "s" * (found["num_groups"] != 1)
        text = (
            f"<p>{self.number('duplicates.num_groups', 'count')} group{plural} of images that are equal, or the same "
            f"up to a shift of two pixels, a reflection and small changes of pixels. Groups with different labels come "
            f"first, then those in several splits, then the most similar. The number is the correlation of the "
            f"details of the most similar pair.</p>"
        )
        cards = []
        for i, (group, shown) in enumerate(zip(found["groups"], pictures)):
            first = group["images"][0]
            views = "".join(
                f"<div>{show_picture(data, one['image'])}{name_compared(one['label'], first['label'])}<br>"
                f"{name_compared(one['split'], first['split'])}<br><small>{name(one['image'])}</small></div>"
                for one, data in zip(group["images"], shown)
            )
            more = group["n"] - len(group["images"])
            kind = "equal" if group["is_equal"] else self.number(f"duplicates.groups.{i}.similarity", "short")
            notes = [kind, *(["leak"] * group["is_leak"]), *(["several labels"] * group["has_conflict"])]
            cards.append(
                f'<div class="finding"><div class="neighbors">{views}</div>'
                f"<p>{' · '.join(notes)}{f' · and {more:,} more' if more else ''}</p></div>"
            )
        return text + f'<div class="findings">{"".join(cards)}</div>'

    def show_classes(self) -> str:
        """Return how many images each class has in each split."""
        splits, classes = self.report["splits"], self.report["classes"]
        rows = [
            [name(label), *(self.number(f"splits.{i}.num_per_class.{j}", "count") for i in range(len(splits)))]
            for j, label in enumerate(classes)
        ]
        total = ["all", *(self.number(f"splits.{i}.n", "count") for i in range(len(splits)))]
        counts = {part["split"]: part["num_per_class"] for part in splits}
        chart = show_figure(draw_class_counts(counts, classes), "Images in each class, as shares of their split.")
        text = (
            f"<p>The largest class has {self.number('imbalance', 'short')} times the training images of the "
            f"smallest.</p>"
        )
        table = show_table(["class", *(escape(part["split"]) for part in splits)], rows, total)
        return text + (f'<div class="pair">{chart}{table}</div>')

    def show_pictures(self) -> str:
        """Return what the picture files are, and which can't be read or are unlike the others."""
        found, problems = self.report["pictures"], self.report["problems"]
        if found is None and not problems:
            return ""
        text = ""
        if found is not None:
            tables = [
                show_table(
                    [key[:-1], "pictures"],
                    [
                        [name(one["name"]), self.number(f"pictures.{key}.{i}.n", "count")]
                        for i, one in enumerate(found[key])
                    ],
                )
                for key in ("sizes", "modes", "formats")
            ]
            text += (
                f"<p>{self.number('pictures.n', 'count')} picture files of "
                f"{self.number('pictures.num_sizes', 'count')} sizes. Images were compared at "
                f"{self.number('image_size', 'count')} pixels.</p>"
                f'<div class="pair">{"".join(tables)}</div>'
            )
        for kind in dict.fromkeys(problem["kind"] for problem in problems):
            rows = [[_place(one), escape(one["detail"])] for one in problems if one["kind"] == kind]
            total = self.number(f"num_problems.{kind}", "count")
            text += f"<p><b>{KINDS[kind]}</b>: {total}</p>{show_table(['picture', ''], rows)}"
        return text or ""

    def show_command(self) -> str:
        """Return the command and the versions."""
        known = ", ".join(
            f"{escape(key)} {escape(value)}" for key, value in self.report["environment"].items() if value is not None
        )
        return f"<pre>{escape(self.report['command'])}</pre><p><small>Versions and hardware: {known}.</small></p>"


def _place(one: Mapping[str, Any]) -> str:
    """Return the name of an image, preceded by its split if the name does not start with it."""
    return name(one["image"]) if one["image"].startswith(f"{one['split']}/") else f"{one['split']} {name(one['image'])}"
