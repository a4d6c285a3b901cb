//! Text → HTML. Everything from outside (names, parameters, samples, logs) goes through [`escape`].

/// `text` as it may stand in HTML, between tags and in quoted attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // A terminal's escape sequences in a log are of no use here.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A table that scrolls by itself where it is wider than the page; columns of figures stand to the right.
/// `rows` are text, not HTML. Without `columns` it has no heads and all cells stand to the left.
#[must_use]
pub fn table(columns: &[String], rows: &[Vec<String>]) -> String {
    let of_figures = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column));
        !columns.is_empty() && !rows.is_empty() && cells.all(|cell| is_figure(cell))
    };
    let cell = |tag: &str, (column, text): (usize, &String)| {
        let class = if of_figures(column) { " class=\"n\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escape(text))
    };
    let row = |tag: &str, cells: &[String]| {
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(|one| cell(tag, one)).collect::<String>())
    };
    let head =
        if columns.is_empty() { String::new() } else { format!("<thead>{}</thead>", row("th", columns)) };
    let body: String = rows.iter().map(|cells| row("td", cells)).collect();
    format!("<div class=\"wide\"><table>{head}<tbody>{body}</tbody></table></div>\n")
}

/// Whether a cell reads as a figure, unit or not, or is empty.
fn is_figure(cell: &str) -> bool {
    let digits = cell.trim_start_matches(['-', '+', '−']);
    cell.is_empty()
        || (digits.starts_with(|c: char| c.is_ascii_digit())
            && cell.chars().filter(|c| c.is_alphabetic()).count() <= 3)
}

/// A coordinate: short, and the same on every machine.
#[must_use]
pub fn coordinate(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// `12.3 s`, `4 min 05 s`, `2 h 03 min`: a duration for a person.
#[must_use]
pub fn duration(seconds: f64) -> String {
    // Durations are positive and far below 2^53 seconds.
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Fails unless every tag is closed where it was opened. Void elements stand alone.
#[cfg(test)]
pub fn assert_balanced(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("no end of a tag: {part}"));
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "at `{part}`");
        } else if !tag.ends_with('/') && !matches!(name, "meta" | "img" | "br" | "!doctype") {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_stays_html() {
        assert_eq!(
            escape("<b a=\"1\" c='2'>&\u{1b}[0m"),
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;\u{fffd}[0m"
        );
        let html = table(&["<i>".into()], &[vec!["</td><script>".into()]]);
        assert!(!html.contains("<i>") && !html.contains("<script>"), "{html}");
        assert_balanced(&html);
    }

    #[test]
    fn durations_read_well() {
        let all = [
            (0.0123, "12 ms"),
            (12.34, "12.3 s"),
            (59.97, "1 min 00 s"),
            (245.0, "4 min 05 s"),
            (7380.0, "2 h 03 min"),
        ];
        for (seconds, text) in all {
            assert_eq!(duration(seconds), text);
        }
    }
}
