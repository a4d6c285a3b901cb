//! Scatter plots of ΔD (x) against ΔM (y) in the manner of the DoRA paper's figure 2: layer = colour,
//! checkpoint = marker, the fitted line, the correlation in the title.
//!
//! One drawing function serves SVG and PNG. Both are the same bytes on every run: the font is part
//! of the binary, and a bitmap is drawn at twice its size and averaged down. Knows no files but the
//! two it writes.

mod axis;

use std::path::Path;

use contract::StageError;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::statistics::Correlation;
use axis::Axis;

/// One point of a figure.
#[derive(Clone, Copy, Debug)]
pub struct Dot {
    /// Layer: its colour.
    pub layer: usize,
    /// Checkpoint: its marker.
    pub step: u64,
    /// ΔD.
    pub x: f64,
    /// ΔM.
    pub y: f64,
}

/// One set of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above it; the correlation is added.
    pub title: String,
    /// Its points.
    pub dots: Vec<Dot>,
    /// Their fitted line and correlation.
    pub fit: Correlation,
}

/// Size of a panel and of the legend beside the panels, in points of the SVG.
const PANEL: (i32, i32) = (520, 470);
const LEGEND: i32 = 130;
const HEADING: i32 = 44;
/// A PNG has this many pixels a point, and is drawn with `OVERSAMPLING` times as many.
const PNG_SCALE: i32 = 2;
const OVERSAMPLING: i32 = 2;
/// More layers than this get a colour bar instead of a list.
const LISTED_LAYERS: usize = 10;
/// Of more checkpoints than this the legend names some, evenly.
const LISTED_STEPS: usize = 10;

const INK: RGBColor = RGBColor(45, 45, 50);
const FAINT: RGBColor = RGBColor(225, 225, 230);
const LINE: RGBColor = RGBColor(110, 110, 120);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Area<'a, B> = DrawingArea<B, Shift>;

/// Writes `<base>.svg` and `<base>.png` with `panels` side by side under `heading`.
pub fn write(base: &Path, heading: &str, panels: &[Panel]) -> Result<(), StageError> {
    draw_both(base, heading, panels)
        .map_err(|error| StageError::new(format!("figure `{}`: {error}", base.display())))
}

fn draw_both(base: &Path, heading: &str, panels: &[Panel]) -> Result<(), Failure> {
    plotters::style::register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the built-in font cannot be read")?;
    let (width, height) = (PANEL.0 * panels.len() as i32 + LEGEND, PANEL.1 + HEADING);
    let svg = base.with_added_extension("svg");
    draw(&SVGBackend::new(&svg, (width as u32, height as u32)).into_drawing_area(), heading, panels, 1)?;

    let scale = PNG_SCALE * OVERSAMPLING;
    let (wide, high) = ((width * scale) as u32, (height * scale) as u32);
    let mut pixels = vec![0; (wide * high * 3) as usize];
    let bitmap = BitMapBackend::with_buffer(&mut pixels, (wide, high)).into_drawing_area();
    draw(&bitmap, heading, panels, scale)?;
    drop(bitmap);
    let size = ((width * PNG_SCALE) as u32, (height * PNG_SCALE) as u32);
    let png = base.with_added_extension("png");
    let mut backend = BitMapBackend::new(&png, size);
    backend.blit_bitmap((0, 0), size, &averaged(&pixels, size, OVERSAMPLING as usize))?;
    backend.present()?;
    Ok(())
}

/// RGB pixels of `size`, each the mean of a square of `factor`² pixels.
fn averaged(pixels: &[u8], (width, height): (u32, u32), factor: usize) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width * 3 {
            let (column, channel) = (x / 3, x % 3);
            let at =
                |dy, dx| pixels[((y * factor + dy) * width * factor + column * factor + dx) * 3 + channel];
            let sum: usize = (0..factor * factor).map(|i| usize::from(at(i / factor, i % factor))).sum();
            out.push((sum / (factor * factor)) as u8);
        }
    }
    out
}

/// What colours and markers stand for; shared by the panels of a figure.
struct Key {
    layers: Vec<usize>,
    steps: Vec<u64>,
}

impl Key {
    fn of(panels: &[Panel]) -> Self {
        let dots = || panels.iter().flat_map(|panel| &panel.dots);
        let mut layers: Vec<usize> = dots().map(|dot| dot.layer).collect();
        let mut steps: Vec<u64> = dots().map(|dot| dot.step).collect();
        layers.sort_unstable();
        layers.dedup();
        steps.sort_unstable();
        steps.dedup();
        Self { layers, steps }
    }

    fn colour(&self, layer: usize) -> RGBColor {
        let place = self.layers.iter().position(|&known| known == layer).unwrap_or(0);
        viridis(place as f64 / self.layers.len().saturating_sub(1).max(1) as f64)
    }

    fn shape(&self, step: u64) -> usize {
        self.steps.iter().position(|&known| known == step).unwrap_or(0)
    }
}

/// The colour map "viridis" (Smith & van der Walt) up to where it gets too light for white paper.
fn viridis(share: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 6] = [
        (68.0, 1.0, 84.0),
        (65.0, 68.0, 135.0),
        (42.0, 120.0, 142.0),
        (34.0, 168.0, 132.0),
        (122.0, 209.0, 81.0),
        (200.0, 220.0, 40.0),
    ];
    let place = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let low = (place as usize).min(STOPS.len() - 2);
    let t = place - low as f64;
    let mix = |a: f64, b: f64| (a + (b - a) * t).round() as u8;
    let (from, to) = (STOPS[low], STOPS[low + 1]);
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// The outline of marker `shape` around (0, 0), in units of its radius. Nine shapes, then again.
fn outline(shape: usize) -> Vec<(f64, f64)> {
    let ring = |corners: usize, start: f64, radius: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        let point = |i: usize| {
            let angle = (start + 360.0 * i as f64 / corners as f64).to_radians();
            (radius(i) * angle.cos(), radius(i) * angle.sin())
        };
        (0..corners).map(point).collect()
    };
    let regular = |corners, start, radius: f64| ring(corners, start, &|_| radius);
    let turned = |points: Vec<(f64, f64)>| {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        points.into_iter().map(|(x, y)| ((x - y) * half, (x + y) * half)).collect()
    };
    let plus = || {
        let (arm, side) = (1.1, 0.38);
        let quarter = [(side, arm), (side, side), (arm, side)];
        let mut points = Vec::new();
        for (sx, sy, flip) in [(1.0, 1.0, false), (1.0, -1.0, true), (-1.0, -1.0, false), (-1.0, 1.0, true)] {
            let mut corner: Vec<_> = quarter.iter().map(|&(x, y)| (sx * x, sy * y)).collect();
            if flip {
                corner.reverse();
            }
            points.extend(corner);
        }
        points
    };
    match shape % 9 {
        0 => regular(24, 0.0, 1.0),
        1 => regular(4, 45.0, 1.25),
        2 => regular(3, -90.0, 1.3),
        3 => regular(4, 0.0, 1.3),
        4 => regular(3, 90.0, 1.3),
        5 => plus(),
        6 => turned(plus()),
        7 => ring(10, -90.0, &|i| if i % 2 == 0 { 1.45 } else { 0.62 }),
        _ => regular(6, 0.0, 1.15),
    }
}

fn font(size: i32, scale: i32) -> TextStyle<'static> {
    ("sans-serif", size * scale).into_font().color(&INK)
}

fn draw<B: DrawingBackend>(
    root: &Area<'_, B>,
    heading: &str,
    panels: &[Panel],
    scale: i32,
) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let key = Key::of(panels);
    let centre = font(19, scale).pos(Pos::new(HPos::Center, VPos::Center));
    let middle = PANEL.0 * panels.len() as i32 / 2 + 20;
    root.draw(&Text::new(heading.to_owned(), (middle * scale, HEADING / 2 * scale), centre))?;
    for (index, panel) in panels.iter().enumerate() {
        let corner = (PANEL.0 * index as i32 * scale, HEADING * scale);
        let area = root.clone().shrink(corner, (PANEL.0 * scale, PANEL.1 * scale));
        draw_panel(root, &area, panel, &key, scale)?;
    }
    draw_legend(root, &key, PANEL.0 * panels.len() as i32 + 8, scale)?;
    root.present()?;
    Ok(())
}

/// The range of `values` with room at both ends.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return (0.0, 1.0);
    }
    let room = if high > low { 0.07 * (high - low) } else { 0.1 * high.abs().max(1e-6) };
    (low - room, high + room)
}

fn draw_panel<B: DrawingBackend>(
    root: &Area<'_, B>,
    area: &Area<'_, B>,
    panel: &Panel,
    key: &Key,
    scale: i32,
) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    let (left, right) = range(panel.dots.iter().map(|dot| dot.x));
    let (bottom, top) = range(panel.dots.iter().map(|dot| dot.y));
    let (x, y) = (Axis::new((left, right), 6), Axis::new((bottom, top), 7));
    let r =
        panel.fit.r.map_or("no correlation".to_owned(), |r| format!("r = {r:+.2}").replace('-', "\u{2212}"));
    let title = format!("{}: {r} (n = {})", panel.title, panel.fit.n);
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(16, scale))
        .margin(8 * scale)
        .x_label_area_size(46 * scale)
        .y_label_area_size(64 * scale)
        .build_cartesian_2d(left..right, bottom..top)?;
    chart
        .configure_mesh()
        .x_labels(x.ticks)
        .y_labels(y.ticks)
        .set_all_tick_mark_size(4 * scale)
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.stroke_width(scale as u32))
        .axis_style(LINE.stroke_width(scale as u32))
        .label_style(font(12, scale))
        .axis_desc_style(font(14, scale))
        .x_desc(x.name("change of direction ΔD"))
        .y_desc(y.name("change of magnitude ΔM"))
        .x_label_formatter(&|value| x.label(*value))
        .y_label_formatter(&|value| y.label(*value))
        .draw()?;
    if let (Some(slope), Some(intercept)) = (panel.fit.slope, panel.fit.intercept) {
        let ends = clipped(slope, intercept, (left, right), (bottom, top));
        chart.draw_series(LineSeries::new(ends, LINE.stroke_width(2 * scale as u32)))?;
    }
    for dot in &panel.dots {
        let at = chart.backend_coord(&(dot.x, dot.y));
        draw_marker(root, at, key.shape(dot.step), key.colour(dot.layer), scale)?;
    }
    Ok(())
}

/// The part of the line y = slope·x + intercept that lies within both ranges.
fn clipped(
    slope: f64,
    intercept: f64,
    (left, right): (f64, f64),
    (bottom, top): (f64, f64),
) -> Vec<(f64, f64)> {
    let (mut from, mut to) = (left, right);
    if slope != 0.0 {
        let (a, b) = ((bottom - intercept) / slope, (top - intercept) / slope);
        from = from.max(a.min(b));
        to = to.min(a.max(b));
    }
    if from < to { [from, to].map(|x| (x, slope * x + intercept)).to_vec() } else { Vec::new() }
}

fn draw_marker<B: DrawingBackend>(
    root: &Area<'_, B>,
    (x, y): (i32, i32),
    shape: usize,
    colour: RGBColor,
    scale: i32,
) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    let radius = 6.0 * f64::from(scale);
    let mut corners: Vec<(i32, i32)> = outline(shape)
        .into_iter()
        .map(|(dx, dy)| (x + (dx * radius).round() as i32, y + (dy * radius).round() as i32))
        .collect();
    root.draw(&Polygon::new(corners.clone(), colour.filled()))?;
    corners.push(corners[0]);
    root.draw(&PathElement::new(corners, WHITE.mix(0.8).stroke_width(scale as u32)))?;
    Ok(())
}

fn draw_legend<B: DrawingBackend>(root: &Area<'_, B>, key: &Key, x: i32, scale: i32) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    let style = || font(13, scale).pos(Pos::new(HPos::Left, VPos::Center));
    let text = |words: String, x: i32, y: i32| Text::new(words, (x * scale, (y + 2) * scale), style());
    let mut y = HEADING + 24;
    root.draw(&text("layer".to_owned(), x, y))?;
    y += 20;
    if key.layers.len() <= LISTED_LAYERS {
        for &layer in &key.layers {
            draw_marker(root, ((x + 8) * scale, y * scale), 0, key.colour(layer), scale)?;
            root.draw(&text(layer.to_string(), x + 22, y))?;
            y += 18;
        }
    } else {
        let (high, first, last) = (160, key.layers[0], key.layers[key.layers.len() - 1]);
        for line in 0..high * scale {
            let colour = viridis(f64::from(line) / f64::from(high * scale));
            let corners = [(x * scale, y * scale + line), ((x + 16) * scale, y * scale + line + 1)];
            root.draw(&Rectangle::new(corners, colour.filled()))?;
        }
        root.draw(&text(first.to_string(), x + 24, y + 4))?;
        root.draw(&text(last.to_string(), x + 24, y + high - 4))?;
        y += high + 8;
    }
    y += 14;
    root.draw(&text("checkpoint".to_owned(), x, y))?;
    y += 20;
    for &step in key.steps.iter().step_by(key.steps.len().div_ceil(LISTED_STEPS).max(1)) {
        draw_marker(root, ((x + 8) * scale, y * scale), key.shape(step), LINE, scale)?;
        root.draw(&text(format!("step {step}"), x + 22, y))?;
        y += 18;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::analyze::statistics::correlation;

    fn panel(title: &str, layers: usize) -> Panel {
        let dots: Vec<Dot> = (1..=9_u64)
            .flat_map(|step| (0..layers).map(move |layer| (step, layer)))
            .map(|(step, layer)| {
                let x = 1e-4 * step as f64 * (1.0 + 0.1 * layer as f64);
                Dot { layer, step: step * 100, x, y: 0.05 - 20.0 * x + 1e-3 * (layer % 3) as f64 }
            })
            .collect();
        let fit = correlation(&dots.iter().map(|dot| (dot.x, dot.y)).collect::<Vec<_>>());
        Panel { title: title.into(), dots, fit }
    }

    #[test]
    fn the_same_points_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let panels = [panel("lora", 4), panel("dora", 4)];
        write(&dir.path().join("a"), "q_proj", &panels).unwrap();
        write(&dir.path().join("b"), "q_proj", &panels).unwrap();
        for kind in ["svg", "png"] {
            let read = |name: &str| fs::read(dir.path().join(format!("{name}.{kind}"))).unwrap();
            assert!(read("a") == read("b"), "{kind} differs");
        }
        let svg = fs::read_to_string(dir.path().join("a.svg")).unwrap();
        assert!(svg.contains("lora: r = \u{2212}") && svg.contains("(n = 36)") && svg.contains("step 900"));
    }

    #[test]
    fn no_spread_and_many_layers_can_be_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let dots = (0..40).map(|layer| Dot { layer, step: 1, x: 0.5, y: 0.0 }).collect();
        let lone = Panel { title: "x".into(), dots, fit: correlation(&[]) };
        write(&dir.path().join("lone"), "v_proj", &[lone]).unwrap();
        assert!(fs::read_to_string(dir.path().join("lone.svg")).unwrap().contains("no correlation"));
    }

    #[test]
    fn a_line_is_cut_at_the_edges() {
        assert_eq!(clipped(1.0, 0.0, (0.0, 10.0), (2.0, 4.0)), [(2.0, 2.0), (4.0, 4.0)]);
        assert!(clipped(1.0, 100.0, (0.0, 1.0), (0.0, 1.0)).is_empty());
    }
}
