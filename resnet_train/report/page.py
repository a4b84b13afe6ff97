"""The page of a report: one HTML file that shows report.json, with pictures inside it and without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.report.document import Numbers, render_document, show_cards, show_figure, show_picture, show_table
from resnet_train.report.figures import (
    draw_confidence_histogram,
    draw_confusion_matrix,
    draw_curves,
    draw_reliability,
)
from resnet_train.report.markup import escape, name, name_compared
from resnet_train.runtime.duration import format_training_length

MAX_CONFUSIONS = 10
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FindingPictures:
    """The pictures of a finding, PNG or JPEG: the image, where the network looked, and the nearest training images."""

    image: bytes
    heat: bytes | None
    neighbors: Sequence[bytes]


def render_report(
    report: dict[str, Any], mistakes: Sequence[FindingPictures], label_errors: Sequence[FindingPictures]
) -> str:
    """Return the page.

    Args:
        report: what report.json holds. Each number on the page is a `<data>` element that names its place there.
        mistakes, label_errors: the pictures of the findings with these names, in order.
    """
    page = _Page(report)
    evaluation = report["evaluation"]
    title = f"{evaluation['arch']} on {evaluation['title']}"
    sections = [
        ("classes", "Classes", page.show_classes()),
        ("confusion", "Confusion matrix", page.show_confusion()),
        ("confidence", "Confidence", page.show_confidence()),
        ("mistakes", "Most confident mistakes", page.show_mistakes(mistakes)),
        ("labels", "Likely label errors", page.show_label_errors(label_errors)),
        ("robustness", "Corrupted images", page.show_robustness()),
        ("unknown", "Unknown images", page.show_unknown()),
        ("curves", "Training", page.show_curves()),
        ("cost", "Cost", page.show_cost()),
        ("reproduce", "Reproduce", page.show_commands()),
    ]
    header = f"<h1>{name(evaluation['arch'])} on {name(evaluation['title'])}</h1>"
    return render_document(title, f"{header}{page.show_subject()}{page.show_headline()}", sections)


class _Page(Numbers):
    """The sections of the page, each HTML text that is empty if there is nothing to show."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report)
        self.evaluation = report["evaluation"]

    def show_subject(self) -> str:
        """Return what was evaluated, on what, and when."""
        found = self.evaluation
        paths = found["ensemble"] or [found["checkpoint"]]
        average = f"The probabilities of {len(paths)} checkpoints are averaged. " if len(paths) > 1 else ""
        if found["tta"]:
            average += f"Test-time augmentation: {escape(found['tta'])}. "
        text = (
            f'<p class="muted">{self.number("evaluation.n", "count")} {escape(found["split"])} images · '
            f"{format_training_length(found['epoch'], found['steps_after_epoch'])} · "
            f"{' · '.join(map(name, paths))} · {escape(self.report['date'])}</p>"
        )
        if average:
            text += f"<p>{average}</p>"
        if (origin := found["origin"]) is not None:
            mean, std = (
                " ".join(self.number(f"evaluation.origin.{kind}.{i}", "general") for i in range(3))
                for kind in ("mean", "std")
            )
            text += (
                f"<p>Trained by other code, with the parameter names of {escape(origin['layout'])}. Images are "
                f"normalized as {escape(origin['normalize'])}: mean {mean}, std {std}.</p>"
            )
        if found["chosen_on"] == found["split"]:
            text += (
                f'<p class="warning">This epoch was selected on the {escape(found["split"])} images: '
                f"do not report this accuracy.</p>"
            )
        return text

    def show_headline(self) -> str:
        """Return the numbers that matter most."""
        interval = "95 % interval {} to {}"
        low, high = (self.number(f"evaluation.ci95.{i}") for i in (0, 1))
        cards = [("accuracy", self.number("evaluation.top1"), interval.format(low, high))]
        if self.evaluation["top5"] is not None:
            cards.append(("top-5 accuracy", self.number("evaluation.top5"), "the label is among the five most likely"))
        low, high = (self.number(f"evaluation.calibration.ece_ci95.{i}") for i in (0, 1))
        cards += [
            ("mean F1", self.number("evaluation.scores.macro_f1"), "over the classes with images"),
            ("calibration error", self.number("evaluation.calibration.ece"), interval.format(low, high)),
            ("loss", self.number("evaluation.loss", "decimal"), "mean cross-entropy"),
        ]
        if self.evaluation["best_top1"] is not None:
            epoch = self.number("evaluation.best_epoch", "count")
            note = f"of epoch {epoch}, selected on the validation images"
            cards.append(("best epoch", self.number("evaluation.best_top1"), note))
        return show_cards(cards)

    def show_classes(self) -> str:
        """Return the numbers of each class."""
        rows = [
            [
                name(row["name"]),
                self.number(f"evaluation.per_class.{i}.n", "count"),
                *(self.number(f"evaluation.per_class.{i}.{key}") for key in ("accuracy", "precision", "f1")),
            ]
            for i, row in enumerate(self.evaluation["per_class"])
        ]
        mean = [
            "mean",
            "",
            *map(self.number, ("evaluation.scores.balanced_accuracy", "mean_precision", "evaluation.scores.macro_f1")),
        ]
        return show_table(["class", "images", "recall", "precision", "F1"], rows, mean)

    def show_confusion(self) -> str:
        """Return the matrix, and the most frequent confusions in words."""
        matrix, classes = self.report["confusion"], self.report["classes"]
        cells = [(cell, i, j) for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j and cell]
        rows = [
            [name(classes[i]), name(classes[j]), self.number(f"confusion.{i}.{j}", "count")]
            for _, i, j in sorted(cells, key=lambda cell: (-cell[0], *cell[1:]))[:MAX_CONFUSIONS]
        ]
        figure = show_figure(
            draw_confusion_matrix(matrix, classes),
            "A row for each label, a column for each prediction. Blue: share of the row's images that are right. "
            "Orange: confusions, relative to the largest one.",
        )
        listed = show_table(["label", "classified as", "images"], rows) if rows else "<p>There are no confusions.</p>"
        return f'<div class="pair">{figure}<div>{listed}</div></div>'

    def show_confidence(self) -> str:
        """Return how far the probabilities can be trusted."""
        bins, found = self.report["bins"], self.evaluation["calibration"]
        ece = self.number("evaluation.calibration.ece")
        text = f"The calibration error is {ece}, the mean gap between confidence and accuracy in {len(bins)} bins. "
        if found["calibrated_ece"] is not None:
            temperatures = [
                self.number(f"evaluation.calibration.temperatures.{i}", "short")
                for i in range(len(found["temperatures"]))
            ]
            low, high = (self.number(f"evaluation.calibration.calibrated_ci95.{i}") for i in (0, 1))
            text += (
                f"With logits divided by a temperature of {' and '.join(temperatures)}, fitted on "
                f"{escape(found['fitted_on'])}, it is {self.number('evaluation.calibration.calibrated_ece')} "
                f"(95 % interval {low} to {high})."
            )
        reliability = show_figure(
            draw_reliability(bins),
            "Accuracy of the images at each confidence. Orange is the gap; on the dashed line, both are equal.",
        )
        histogram = show_figure(
            draw_confidence_histogram(bins), "How sure the network is when it is right, and when it is wrong."
        )
        return f'<p>{text}</p><div class="pair">{reliability}{histogram}</div>'

    def show_mistakes(self, pictures: Sequence[FindingPictures]) -> str:
        """Return the wrong images that the network is most sure of, where it looked, and similar training images."""
        findings = self.report["mistakes"]
        if not findings:
            return "<p>There are no mistakes.</p>"
        text = (
            "The wrong images that the network is most sure of; next to each, the pixels that support its answer "
            "(HiResCAM). Below are the training images with the nearest features before the last layer, and their "
            "labels: if these are right, the network had reason to be sure."
        )
        if len(self.evaluation["ensemble"]) > 1 or self.evaluation["tta"]:
            text += " Both are those of the first checkpoint alone."
        if self.report["no_neighbors"]:
            text += f" There are no training images here: {escape(self.report['no_neighbors'])}."
        cards = []
        for i, (finding, shown) in enumerate(zip(findings, pictures)):
            heat = show_picture(shown.heat, "where the network looked") if shown.heat else ""
            near = "".join(
                f"<div>{show_picture(data, one['image'])}{name_compared(one['label'], finding['predicted'])}<br>"
                f"<small>{self.number(f'mistakes.{i}.neighbors.{j}.cosine', 'short')}</small></div>"
                for j, (one, data) in enumerate(zip(finding["neighbors"], shown.neighbors))
            )
            cards.append(
                f'<div class="finding"><div class="views">{show_picture(shown.image, finding["image"])}{heat}</div>'
                f"<p><b>{name(finding['predicted'])}</b> {self.number(f'mistakes.{i}.confidence')}, label "
                f"<b>{name(finding['label'])}</b> {self.number(f'mistakes.{i}.self_confidence')}<br>"
                f"<small>{name(finding['image'])}</small></p>"
                f'<div class="neighbors">{near}</div></div>'
            )
        return f'<p>{text}</p><div class="findings">{"".join(cards)}</div>'

    def show_label_errors(self, pictures: Sequence[FindingPictures]) -> str:
        """Return the images whose label is probably wrong."""
        findings = self.report["label_errors"]
        if not findings:
            return "<p>The network does not confidently contradict any label.</p>"
        total = self.number("num_label_errors", "count")
        split = escape(self.evaluation["split"])
        text = (
            f"The network is at least as sure of another class as it is of that class's own images for {total} of the "
            f"{split} images. These {len(findings)} have the least likely labels. Look before you relabel: many are "
            f"mistakes of the network."
        )
        cards = []
        for i, (finding, shown) in enumerate(zip(findings, pictures)):
            labels = [one["label"] for one in finding["neighbors"]]
            votes = (
                f"<br><small>{labels.count(finding['predicted'])} of {len(labels)} neighbors agree</small>"
                if labels
                else ""
            )
            cards.append(
                f'<div class="finding">{show_picture(shown.image, finding["image"])}'
                f"<p>label <b>{name(finding['label'])}</b> {self.number(f'label_errors.{i}.self_confidence')}<br>"
                f"or <b>{name(finding['predicted'])}</b> {self.number(f'label_errors.{i}.confidence')}{votes}<br>"
                f"<small>{name(finding['image'])}</small></p></div>"
            )
        return f'<p>{text}</p><div class="findings small">{"".join(cards)}</div>'

    def show_robustness(self) -> str:
        """Return a table for each source of corrupted images."""
        text = ""
        for i, table in enumerate(self.evaluation["robustness"]):
            path = f"evaluation.robustness.{i}"
            severities = range(len(table["corruptions"][0]["accuracies"]))
            rows = [
                [
                    name(row["name"]),
                    *(self.number(f"{path}.corruptions.{j}.accuracies.{k}") for k in severities),
                    self.number(f"{path}.corruptions.{j}.mean"),
                ]
                for j, row in enumerate(table["corruptions"])
            ]
            text += (
                f"<p>Corrupted images {escape(table['source'])}: mean accuracy {self.number(f'{path}.mean_accuracy')}, "
                f"without corruption {self.number(f'{path}.clean_accuracy')}. Columns are severities.</p>"
            )
            text += show_table(["corruption", *(str(k + 1) for k in severities), "mean"], rows)
        return text

    def show_unknown(self) -> str:
        """Return how well images of another kind are recognized."""
        found = self.evaluation["unknown"]
        if found is None:
            return ""
        text = (
            f"AUROC {self.number('evaluation.unknown.auroc', 'decimal')} against "
            f"{self.number('evaluation.unknown.n', 'count')} images of {name(found['title'])}. "
        )
        if found["found"] is not None:
            text += (
                f"{self.number('evaluation.unknown.found')} of them are called unknown, and "
                f"{self.number('evaluation.unknown.false_alarms')} of the {escape(self.evaluation['split'])} images."
            )
        return f"<p>{text}</p>"

    def show_curves(self) -> str:
        """Return accuracy and loss over the epochs of training."""
        curves = self.report["curves"]
        epochs = curves.get("epoch", [])
        figures = ""
        for metric in ("accuracy", "loss"):
            columns = {split: curves.get(f"{split}_{metric}", []) for split in SPLITS}
            series = {split: values for split, values in columns.items() if any(value is not None for value in values)}
            if series:
                figures += show_figure(draw_curves(epochs, series, metric, percent=metric == "accuracy"), "")
        note = "Training images are augmented; the others are not."
        return figures and f'<div class="pair">{figures}</div><p class="muted">{note}</p>'

    def show_cost(self) -> str:
        """Return the size and the speed of the network."""
        rows = [
            ["parameters", self.number("cost.params", "count")],
            ["multiply-adds per image", self.number("cost.macs", "count")],
            ["images per second", self.number("evaluation.images_per_second", "rate")],
            ["device", escape(self.evaluation["device"])],
        ]
        return show_table(["", ""], rows)

    def show_commands(self) -> str:
        """Return the commands, the versions and all settings."""
        report = self.report
        text = f"<p>This page:</p><pre>{escape(report['command'])}</pre>"
        if report["train_command"]:
            text += f"<p>The network:</p><pre>{escape(report['train_command'])}</pre>"
        else:
            text += "<p>The network was not trained by this program; its settings were not recorded.</p>"
        for title, values in (("training", report["train_environment"]), ("this page", report["environment"])):
            if values:
                known = ", ".join(
                    f"{escape(key)} {escape(value)}" for key, value in values.items() if value is not None
                )
                text += f"<p><small>Versions and hardware of {title}: {known}.</small></p>"
        if report["train_command"]:
            settings = "".join(
                f'<div class="changed">{pair}</div>' if key in report["changed"] else f"<div>{pair}</div>"
                for key, value in report["config"].items()
                for pair in [f"<span>{escape(key)}</span><span>{escape('–' if value is None else value)}</span>"]
            )
            text += (
                f'<p>All settings; those that are not the default are bold.</p><div class="settings">{settings}</div>'
            )
        return text
