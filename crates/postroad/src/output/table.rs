//! Tables for people: headings in capitals, columns two spaces apart, no lines and no colours.

use unicode_width::UnicodeWidthStr;

use super::{Screen, line};

/// The space between two columns.
const GAP: &str = "  ";

/// One line of a table.
pub trait Row {
    /// The columns, the one that may be longest last: only that one is cut, where a terminal is too narrow.
    const COLUMNS: &'static [Column];

    /// Returns a text for each column; an empty one is shown as `-`.
    fn cells(&self) -> Vec<String>;
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    heading: &'static str,
    is_number: bool,
}

impl Column {
    /// Returns its heading.
    #[must_use]
    pub fn heading(self) -> &'static str {
        self.heading
    }
}

/// A column of texts, which begin below each other.
#[must_use]
pub const fn text(heading: &'static str) -> Column {
    Column { heading, is_number: false }
}

/// A column of numbers, which end below each other.
#[must_use]
pub const fn number(heading: &'static str) -> Column {
    Column { heading, is_number: true }
}

/// Returns rows as a table, or a sentence where there are none.
#[must_use]
pub fn table<'a, R: Row + 'a>(rows: impl IntoIterator<Item = &'a R>, screen: Screen, none: &str) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| cells(R::COLUMNS, row)).collect();
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let headings = R::COLUMNS.iter().map(|column| column.heading.to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let width_of = |position: usize| lines.iter().map(|line| line[position].width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..R::COLUMNS.len()).map(width_of).collect();
    lines.iter().map(|cells| one_line(R::COLUMNS, cells, &widths, screen)).collect()
}

fn cells<R: Row>(columns: &[Column], row: &R) -> Vec<String> {
    let mut cells = row.cells();
    cells.resize(columns.len(), String::new());
    cells.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { line(cell) }).collect()
}

fn one_line(columns: &[Column], cells: &[String], widths: &[usize], screen: Screen) -> String {
    let mut text = String::new();
    let last = columns.len() - 1;
    for (position, (column, cell)) in columns.iter().zip(cells).enumerate() {
        if position > 0 {
            text.push_str(GAP);
        }
        let padding = " ".repeat(widths[position] - cell.width());
        match (column.is_number, position == last) {
            (true, _) => text.extend([padding.as_str(), cell]),
            (false, true) => {
                text.push_str(&cut(cell, screen.width.map(|width| width.saturating_sub(text.width()))))
            }
            (false, false) => text.extend([cell, padding.as_str()]),
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Cuts a text to a width, of which nothing readable may be left.
fn cut(text: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| text.width() > *width) else { return text.to_owned() };
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if kept.width() >= width {
            kept.pop();
            break;
        }
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Site(&'static str, u64, &'static str);

    impl Row for Site {
        const COLUMNS: &'static [Column] = &[text("SITE"), number("QUEUED"), text("LAST REPLY")];

        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_string(), self.2.to_owned()]
        }
    }

    fn check(rows: &[Site], width: Option<usize>, expected: &[&str]) {
        let shown = table(rows, Screen { width }, "nothing waits");
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "{shown}");
        assert!(width.is_none_or(|width| shown.lines().all(|line| line.width() <= width)), "{shown}");
    }

    #[test]
    fn columns_are_aligned_and_only_the_last_one_is_cut_to_the_terminal() {
        let rows = [
            Site("mx.receiver.example", 12_000, "451 4.7.1 try again\r\nlater"),
            Site("bücher.example", 7, ""),
        ];
        let whole = [
            "SITE                 QUEUED  LAST REPLY",
            "mx.receiver.example   12000  451 4.7.1 try again\\r\\nlater",
            "bücher.example            7  -",
        ];
        check(&rows, None, &whole);
        check(&rows, Some(200), &whole);
        check(
            &rows,
            Some(42),
            &[
                "SITE                 QUEUED  LAST REPLY",
                "mx.receiver.example   12000  451 4.7.1 tr…",
                "bücher.example            7  -",
            ],
        );
        check(&[], None, &["nothing waits"]);
    }
}
