//! Line charts as SVG: axes with round ticks, one curve a series, a legend in HTML that wraps.
//!
//! Knows nothing of stages. A chart is 460 units wide and as wide as the page; on small screens the style
//! sheet makes the letters larger.

use super::html::{coordinate, escape};
use crate::measured::{Point, figure};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 28.0;

/// Above this many points a curve shows means of neighbours.
const POINTS: usize = 320;

/// Up to this many points each has a dot.
const DOTS: usize = 40;

/// Where all values are above 0, the largest is this many times the smallest and most of them lie at the
/// bottom of the range, the axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 30.0;

/// At the bottom: the median is below this share of the range.
const BOTTOM_SHARE: f64 = 0.15;

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What the legend calls it; curves of one name and colour share an entry.
    pub name: String,
    /// Which of the eight colours.
    pub color: usize,
    /// Dashed: measured on held-out data.
    pub dashed: bool,
    /// Its points, by step.
    pub points: Vec<Point>,
}

/// A chart of `curves` with its caption and legend. Values that are no number leave a gap in nothing: they
/// are left out.
#[must_use]
pub fn figure_of(title: &str, curves: &[Curve]) -> String {
    let (curves, merged) = thinned(curves);
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let x = Axis::new(all().map(|point| point.step), false);
    let y = Axis::new(all().map(|point| point.value), true);
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escape(title)
    );
    for (value, share) in y.ticks() {
        let at = coordinate(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM));
        svg += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\"/><text class=\"tick\" x=\"{}\" y=\"{at}\" dy=\"0.35em\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 8.0,
            figure(value)
        );
    }
    for (value, share) in x.ticks() {
        let at = coordinate(LEFT + share * (WIDTH - LEFT - RIGHT));
        svg += &format!(
            "<line class=\"grid\" x1=\"{at}\" x2=\"{at}\" y1=\"{TOP}\" y2=\"{0}\"/><text class=\"tick\" x=\"{at}\" y=\"{0}\" dy=\"1.3em\" text-anchor=\"middle\">{1}</text>\n",
            HEIGHT - BOTTOM,
            figure(value)
        );
    }
    svg.extend(curves.iter().map(|curve| path(curve, &x, &y)));
    svg += "</svg>\n";
    let mut notes = Vec::new();
    notes.extend(curves.iter().any(|curve| curve.dashed).then(|| "dashed: held-out".to_owned()));
    notes.extend(y.logarithmic.then(|| "logarithmic".to_owned()));
    notes.extend((merged > 1).then(|| format!("a point is the mean of {merged}")));
    let notes =
        if notes.is_empty() { String::new() } else { format!(" <small>{}</small>", notes.join(", ")) };
    format!("<figure><figcaption>{}{notes}</figcaption>\n{svg}{}</figure>\n", escape(title), legend(&curves))
}

/// The same curves with at most [`POINTS`] points each, and how many points went into one at most.
fn thinned(curves: &[Curve]) -> (Vec<Curve>, usize) {
    let mut merged = 1;
    let thin = |curve: &Curve| {
        let finite: Vec<Point> =
            curve.points.iter().copied().filter(|point| point.value.is_finite()).collect();
        let chunk = finite.len().div_ceil(POINTS).max(1);
        merged = merged.max(chunk);
        let mean = |points: &[Point]| {
            let count = points.len() as f64;
            Point {
                step: points.iter().map(|point| point.step).sum::<f64>() / count,
                value: points.iter().map(|point| point.value).sum::<f64>() / count,
            }
        };
        Curve { points: finite.chunks(chunk).map(mean).collect(), ..curve.clone() }
    };
    let curves = curves.iter().map(thin).collect();
    (curves, merged)
}

fn path(curve: &Curve, x: &Axis, y: &Axis) -> String {
    let place = |point: &Point| {
        let (right, up) = (x.share(point.step), y.share(point.value));
        (
            coordinate(LEFT + right * (WIDTH - LEFT - RIGHT)),
            coordinate(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)),
        )
    };
    let places: Vec<(String, String)> = curve.points.iter().map(place).collect();
    let points: Vec<String> = places.iter().map(|(x, y)| format!("{x},{y}")).collect();
    let class = format!("c{}{}", curve.color % 8, if curve.dashed { " dashed" } else { "" });
    let mut svg = format!("<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" "));
    if places.len() <= DOTS {
        let dot =
            |(x, y): &(String, String)| format!("<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>");
        svg.extend(places.iter().map(dot));
        svg.push('\n');
    }
    svg
}

fn legend(curves: &[Curve]) -> String {
    let mut names: Vec<(usize, &str, usize)> = Vec::new();
    for curve in curves {
        match names.iter_mut().find(|(color, name, _)| (*color, *name) == (curve.color, &curve.name)) {
            Some((.., count)) => *count += usize::from(!curve.dashed),
            None => names.push((curve.color, &curve.name, usize::from(!curve.dashed))),
        }
    }
    let one = |(color, name, count): &(usize, &str, usize)| {
        let several = if *count > 1 { format!(" ({count} seeds)") } else { String::new() };
        format!("<span><i class=\"c{}\"></i>{}{several}</span> ", color % 8, escape(name))
    };
    format!("<p class=\"legend\">{}</p>\n", names.iter().map(one).collect::<String>())
}

/// One direction of a chart.
#[derive(Debug)]
struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Axis {
    /// An axis that holds all of `values`; a few per cent more where `room` is asked for.
    fn new(values: impl Iterator<Item = f64>, room: bool) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (mut from, mut to, median) = match values[..] {
            [] => (0.0, 1.0, 0.5),
            _ => (values[0], values[values.len() - 1], values[values.len() / 2]),
        };
        let low = median - from < BOTTOM_SHARE * (to - from);
        let logarithmic = room && from > 0.0 && to / from >= LOGARITHMIC_FROM && low;
        if logarithmic {
            return Self { from: from.ln(), to: to.ln(), logarithmic }.with_room();
        }
        if from == to {
            let half = if from == 0.0 { 1.0 } else { from.abs() / 2.0 };
            (from, to) = (from - half, to + half);
        }
        let axis = Self { from, to, logarithmic };
        if room { axis.with_room() } else { axis }
    }

    fn with_room(self) -> Self {
        let room = (self.to - self.from) * 0.04;
        // An axis of what is never negative starts at 0, not below.
        let from = if !self.logarithmic && self.from >= 0.0 {
            (self.from - room).max(0.0)
        } else {
            self.from - room
        };
        Self { from, to: self.to + room, ..self }
    }

    /// Where a value lies, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.ln() } else { value };
        (value - self.from) / (self.to - self.from)
    }

    /// Round values and where they lie.
    fn ticks(&self) -> Vec<(f64, f64)> {
        let values = if self.logarithmic { self.powers() } else { steps(self.from, self.to, 5.0) };
        values.into_iter().map(|value| (value, self.share(value))).collect()
    }

    /// 1, 2 and 5 times powers of ten; only powers where these are many.
    fn powers(&self) -> Vec<f64> {
        let tens = (self.from / std::f64::consts::LN_10).floor() as i32
            ..=(self.to / std::f64::consts::LN_10).ceil() as i32;
        let within = |value: &f64| (self.from..=self.to).contains(&value.ln());
        let times = |factors: &'static [f64]| {
            tens.clone()
                .flat_map(move |ten| factors.iter().map(move |factor| factor * 10_f64.powi(ten)))
                .filter(within)
        };
        let powers: Vec<f64> = times(&[1.0]).collect();
        let every = powers.len().div_ceil(7).max(1);
        if powers.len() >= 3 {
            powers.into_iter().step_by(every).collect()
        } else {
            times(&[1.0, 2.0, 5.0]).collect()
        }
    }
}

/// Multiples of a round number between two values, about `count` of them.
fn steps(from: f64, to: f64, count: f64) -> Vec<f64> {
    let raw = (to - from) / count;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw)
        .unwrap_or(raw);
    let first = (from / step - 1e-9).ceil();
    let last = (to / step + 1e-9).floor();
    // At most ten steps, by the choice of `step`.
    (0..=(last - first).max(0.0) as u32).map(|number| (first + f64::from(number)) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::assert_balanced;

    fn curve(values: impl IntoIterator<Item = f64>) -> Curve {
        let points = values.into_iter().enumerate().map(|(step, value)| Point { step: step as f64, value });
        Curve { name: "a".into(), color: 0, dashed: false, points: points.collect() }
    }

    #[test]
    fn ticks_are_round() {
        let near = |found: Vec<f64>, wanted: &[f64]| {
            assert!(
                found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9),
                "{found:?}"
            );
        };
        near(steps(0.0, 1000.0, 5.0), &[0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        near(steps(0.13, 0.42, 5.0), &[0.2, 0.3, 0.4]);
        near(
            Axis::new([0.05, 0.06, 8.0].into_iter(), true).ticks().iter().map(|tick| tick.0).collect(),
            &[0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0],
        );
    }

    #[test]
    fn every_point_lies_within_the_chart() {
        for values in [vec![1.0, 2.0], vec![0.001, 100.0], vec![5.0, 5.0], vec![-1.0, 0.0], vec![0.0]] {
            let axis = Axis::new(values.iter().copied(), true);
            assert!(
                values.iter().all(|value| (0.0..=1.0).contains(&axis.share(*value))),
                "{values:?} {axis:?}"
            );
        }
    }

    #[test]
    fn a_long_curve_shows_means_and_says_so() {
        let html = figure_of("loss <x>", &[curve((0..1000).map(f64::from))]);
        assert!(html.contains("a point is the mean of 4") && html.contains("loss &lt;x&gt;"), "{html}");
        assert_balanced(&html);
        assert!(!figure_of("loss", &[curve([1.0, 2.0])]).contains("mean"));
    }

    #[test]
    fn what_is_no_number_breaks_nothing() {
        let html = figure_of("loss", &[curve([f64::NAN, f64::INFINITY, 1.0]), curve([])]);
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }
}
