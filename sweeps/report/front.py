"""The front as a page of its own: each pair of objectives, and how the front grew."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.subplots import make_subplots

from sweeps.hypervolume import volume_shares
from sweeps.objectives import Objective, values_of
from sweeps.pareto import Front, Place
from sweeps.report.wording import front_line, front_rule, params_line, short_label, short_value
from sweeps.trials import SweepRecord

# Each group has a colour and a shape, so that the picture can be read without colours.
GROUPS: Mapping[str, tuple[str, str]] = {
    "front": ("#1a7f37", "circle"),
    "front by noise": ("#bf8700", "circle-open"),
    "ties with front": ("#0969da", "square-open"),
    "behind": ("#8c959f", "x-thin-open"),
    "control": ("#cf222e", "diamond"),
}
Spot = tuple[int, int]  # row and column of a picture, from 1
PLOT_WIDTH, PLOT_HEIGHT = 620, 480


def write_front(record: SweepRecord, front: Front, path: Path) -> None:
    """Write the page; it needs no network."""
    shares = _shares(record, front.objectives)
    environment = Environment(
        loader=PackageLoader("sweeps.report", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(short_label=short_label, params=params_line)
    text = environment.get_template("front.html.j2").render(
        name=record.name,
        front=front,
        line=front_line(front),
        rule=front_rule(front),
        plot=_figure(front, shares).to_html(full_html=False, include_plotlyjs=True),
        has_growth=bool(shares),
    )
    path.write_text(text, encoding="utf-8")


def _shares(record: SweepRecord, objectives: Sequence[Objective]) -> list[tuple[str, float]]:
    """(trial, share of the hypervolume) of the finished trials, in their order."""
    known = [(trial, values_of(trial, objectives)) for trial in record.searched]
    rows = [(trial, values) for trial, values in known if values is not None]
    shares = volume_shares([values for _, values in rows], objectives)
    return [
        (short_label(trial.label), share) for (trial, _), share in zip(rows, shares, strict=False)
    ]


def _figure(front: Front, shares: Sequence[tuple[str, float]]) -> go.Figure:
    pairs = list(combinations(range(len(front.objectives)), 2))
    cells = len(pairs) + bool(shares)
    columns = min(2, cells)
    lines = -(-cells // columns)
    figure = make_subplots(
        rows=lines, cols=columns, horizontal_spacing=0.12, vertical_spacing=0.28 / lines
    )
    scales = [_scale(front, i) for i in range(len(front.objectives))]
    for cell, pair in enumerate(pairs):
        _draw_pair(figure, front, pair, scales, _spot(cell, columns), with_legend=cell == 0)
    if shares:
        _draw_growth(figure, shares, _spot(len(pairs), columns))
    figure.update_layout(
        template="plotly_white",
        width=PLOT_WIDTH * columns,
        height=PLOT_HEIGHT * lines,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
    )
    return figure


def _spot(cell: int, columns: int) -> Spot:
    return 1 + cell // columns, 1 + cell % columns


def _scale(front: Front, index: int) -> tuple[float, str]:
    """The unit of an objective's axis: what to divide by, and the title."""
    objective = front.objectives[index]
    better = "more is better" if objective.mode == "max" else "less is better"
    if not objective.is_time:
        return 1.0, f"{objective.name} ({better})"
    places = [*front.places, *([front.control] if front.control else [])]
    longest = max((place.values[index] for place in places), default=0.0)
    divisor, unit = next(
        ((s, u) for s, u in ((3600.0, "hours"), (60.0, "minutes")) if longest >= 2 * s),
        (1.0, "seconds"),
    )
    return divisor, f"{objective.name}, {unit} ({better})"


def _draw_pair(
    figure: go.Figure,
    front: Front,
    pair: tuple[int, int],
    scales: Sequence[tuple[float, str]],
    spot: Spot,
    *,
    with_legend: bool,
) -> None:
    """The second objective over the first; for two objectives the edge of the front as well."""
    y, x = pair
    if len(front.objectives) == 2:
        _draw_edge(figure, front, scales, spot)
    for group, (colour, symbol) in GROUPS.items():
        places = _members_of(front, group)
        if not places:
            continue
        figure.add_trace(
            go.Scatter(
                x=[place.values[x] / scales[x][0] for place in places],
                y=[place.values[y] / scales[y][0] for place in places],
                # Bars of all would hide the front.
                error_x=None if group == "behind" else _bars(front, places, x, scales, colour),
                error_y=None if group == "behind" else _bars(front, places, y, scales, colour),
                mode="markers+text",
                text=[short_label(p.trial.label) if group != "behind" else "" for p in places],
                textposition="top right",
                marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
                name=group,
                legendgroup=group,
                showlegend=with_legend,
                hovertext=[_hover(front, place) for place in places],
                hoverinfo="text",
            ),
            row=spot[0],
            col=spot[1],
        )
    figure.update_xaxes(title_text=scales[x][1], row=spot[0], col=spot[1])
    figure.update_yaxes(title_text=scales[y][1], row=spot[0], col=spot[1])


def _members_of(front: Front, group: str) -> list[Place]:
    if group == "control":
        return [front.control] if front.control else []
    return [place for place in front.places if (place.standing or "behind") == group]


def _draw_edge(
    figure: go.Figure,
    front: Front,
    scales: Sequence[tuple[float, str]],
    spot: Spot,
) -> None:
    """The staircase between what two objectives dominate and what they do not."""
    points = sorted((place.values[1], place.values[0]) for place in front.members)
    figure.add_trace(
        go.Scatter(
            x=[x / scales[1][0] for x, _ in points],
            y=[y / scales[0][0] for _, y in points],
            mode="lines",
            # A step comes where the better neighbour begins.
            line={
                "shape": "hv" if front.objectives[1].mode == "min" else "vh",
                "color": GROUPS["front"][0],
                "dash": "dot",
                "width": 1,
            },
            hoverinfo="skip",
            showlegend=False,
        ),
        row=spot[0],
        col=spot[1],
    )


def _bars(
    front: Front,
    places: Sequence[Place],
    index: int,
    scales: Sequence[tuple[float, str]],
    colour: str,
) -> Mapping[str, object]:
    noise, divisor = front.noises[index], scales[index][0]
    widths = [noise.half_width(place.num_scores) / divisor for place in places]
    return {"type": "data", "array": widths, "color": colour, "thickness": 0.8, "width": 2}


def _hover(front: Front, place: Place) -> str:
    pairs = zip(front.objectives, place.values, strict=True)
    lines = [f"{objective.name} {objective.show(value)}" for objective, value in pairs]
    if place.is_repeated:
        lines.append(f"means of {place.num_scores} new seeds")
    params = [f"{name} = {short_value(value)}" for name, value in place.trial.sampled.items()]
    return "<br>".join([f"<b>{short_label(place.trial.label)}</b>", *lines, *params])


def _draw_growth(figure: go.Figure, shares: Sequence[tuple[str, float]], spot: Spot) -> None:
    figure.add_trace(
        go.Scatter(
            x=[name for name, _ in shares],
            y=[100 * share for _, share in shares],
            mode="lines+markers",
            line={"shape": "hv", "color": "#57606a"},
            hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
            showlegend=False,
        ),
        row=spot[0],
        col=spot[1],
    )
    figure.update_xaxes(title_text="finished trials, in their order", row=spot[0], col=spot[1])
    figure.update_yaxes(
        title_text="hypervolume, % of now", rangemode="tozero", row=spot[0], col=spot[1]
    )
