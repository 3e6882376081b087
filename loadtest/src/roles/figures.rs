//! Figures of several rounds: their medians, with the lowest and the highest.

use std::fmt;

use serde::Serialize;

/// Figures in the order in which they were first added.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Figures(Vec<Figure>);

#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    /// One for each round.
    values: Vec<f64>,
}

impl Figures {
    /// Adds the figure of a round.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure { name: name.to_owned(), values: vec![value] }),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Figure { name, values } in &self.0 {
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            let [lowest, median, highest] =
                [0, values.len() / 2, values.len() - 1].map(|at| rounded(values[at]));
            writeln!(f, "{name:<72} {median:>9}  ({lowest} to {highest})")?;
        }
        Ok(())
    }
}

/// Three digits say all that such a figure can.
fn rounded(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_their_median_and_spread() {
        let mut figures = Figures::default();
        for value in [3.0, 120.4, 20.0] {
            figures.add("a", value);
        }
        figures.add("b", 1.0);
        let text = figures.to_string();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
        assert_eq!(lines, [["a", "20.0", "(3.00", "to", "120)"], ["b", "1.00", "(1.00", "to", "1.00)"]]);
    }
}
