//! As much of PromQL as our queries need: which series they select and how, and their times made shorter.
//!
//! Whether a query is valid is for Prometheus to say; the tests ask it.

/// A selector of series in a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The metric, with the suffix of a histogram's series.
    pub metric: String,
    /// The labels of its matchers.
    pub labels: Vec<String>,
    /// The function whose argument it is; empty where there is none.
    pub function: String,
    /// It selects a range.
    pub is_range: bool,
}

/// What a query reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The selectors, in their order.
    pub selectors: Vec<Selector>,
    /// The labels that it groups by or joins on.
    pub grouping: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text,
    Mark(char),
}

/// Words before a list of labels in parentheses.
const GROUPING: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words of the language besides functions.
const KEYWORDS: &[&str] = &["and", "or", "unless", "offset", "bool", "inf", "nan"];

/// Finds the selectors and the labels of a query.
#[must_use]
pub fn reads(query: &str) -> Reads {
    let tokens = tokens(query);
    let mut reads = Reads::default();
    let mut open: Vec<String> = Vec::new();
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        place += 1;
        match token {
            Token::Mark('(') => open.push(String::new()),
            Token::Mark(')') => drop(open.pop()),
            Token::Word(word) if tokens.get(place) == Some(&Token::Mark('(')) => {
                open.push(word.clone());
                place += 1;
            }
            Token::Word(word) if open.last().is_some_and(|last| GROUPING.contains(&last.as_str())) => {
                reads.grouping.push(word.clone());
            }
            Token::Word(word) if is_metric(word) => {
                let labels = matchers(&tokens, &mut place);
                let is_range = tokens.get(place) == Some(&Token::Mark('['));
                if is_range {
                    // The interval is not a metric.
                    place += 2;
                }
                let function = open.last().cloned().unwrap_or_default();
                reads.selectors.push(Selector { metric: word.clone(), labels, function, is_range });
            }
            Token::Word(_) | Token::Text | Token::Mark(_) => {}
        }
    }
    reads
}

/// A word that is neither a number nor a duration, nor of the language.
fn is_metric(word: &str) -> bool {
    let is_name = word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    is_name && !GROUPING.contains(&word) && !KEYWORDS.contains(&word) && !AGGREGATIONS.contains(&word)
}

/// Functions that can stand before `by`.
const AGGREGATIONS: &[&str] = &["sum", "min", "max", "avg", "count", "topk", "bottomk", "count_values"];

/// Reads the labels of the matchers that follow a metric.
fn matchers(tokens: &[Token], place: &mut usize) -> Vec<String> {
    let mut labels = Vec::new();
    if tokens.get(*place) != Some(&Token::Mark('{')) {
        return labels;
    }
    while let Some(token) = tokens.get(*place) {
        *place += 1;
        match token {
            Token::Word(label) => labels.push(label.clone()),
            Token::Mark('}') => break,
            Token::Text | Token::Mark(_) => {}
        }
    }
    labels
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            _ if is_of_word(first) => rest.find(|c| !is_of_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, behind) = rest.split_at(length);
        match first {
            '"' => tokens.push(Token::Text),
            _ if is_of_word(first) => tokens.push(Token::Word(token.to_owned())),
            _ if first.is_whitespace() => {}
            _ => tokens.push(Token::Mark(first)),
        }
        rest = behind;
    }
    tokens
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '$')
}

/// Divides a duration such as `15m` by a number; never shorter than a second.
///
/// # Panics
/// It is no duration of one unit.
#[must_use]
pub fn divided(duration: &str, by: u64) -> String {
    if by == 1 {
        return duration.to_owned();
    }
    format!("{}s", (seconds(duration) / by).max(1))
}

fn seconds(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("`{duration}` is no duration"));
    match unit {
        "s" => number,
        "m" => number * 60,
        "h" => number * 3600,
        "d" => number * 86_400,
        _ => panic!("`{duration}` has no unit"),
    }
}

/// Divides the windows and offsets of an expression by a number, and writes `<1h>` as its seconds.
///
/// # Panics
/// One of them is no duration.
#[must_use]
pub fn faster(expr: &str, by: u64) -> String {
    let windows = replaced(expr, "[", "]", |window| format!("[{}]", divided(window, by)));
    let offsets = replaced(&windows, " offset ", " ", |offset| format!(" offset {} ", divided(offset, by)));
    replaced(&offsets, "<", ">", |duration| (seconds(duration) / by).max(1).to_string())
}

/// Replaces what is between two texts, where it is a duration, and the texts with it.
fn replaced(text: &str, before: &str, behind: &str, with: impl Fn(&str) -> String) -> String {
    let mut made = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(before) {
        let inner = &rest[start + before.len()..];
        let end = inner.find(behind).unwrap_or(inner.len());
        let is_duration = inner[..end].len() > 1
            && inner[..end - 1].bytes().all(|byte| byte.is_ascii_digit())
            && inner[..end].ends_with(['s', 'm', 'h', 'd']);
        made.push_str(&rest[..start]);
        if is_duration {
            made.push_str(&with(&inner[..end]));
            rest = inner.get(end + behind.len()..).unwrap_or_default();
        } else {
            made.push_str(before);
            rest = inner;
        }
    }
    made + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selectors_and_labels_of_a_query_are_found() {
        let check = |query: &str, selectors: &[(&str, &[&str], &str, bool)], grouping: &[&str]| {
            let selector = |(metric, labels, function, is_range): &(&str, &[&str], &str, bool)| Selector {
                metric: (*metric).to_owned(),
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                function: (*function).to_owned(),
                is_range: *is_range,
            };
            let selectors = selectors.iter().map(selector).collect();
            let grouping = grouping.iter().map(|label| (*label).to_owned()).collect();
            assert_eq!(reads(query), Reads { selectors, grouping }, "{query}");
        };
        check("up == 0", &[("up", &[], "", false)], &[]);
        check(
            "sum by (site) (rate(x_total{cluster=~\"$cluster\",site!=\"other\"}[$__rate_interval])) / 5m",
            &[("x_total", &["cluster", "site"], "rate", true)],
            &["site"],
        );
        check(
            "max(a:b) > 1 and on (node) c offset 5m unless ignoring (x) d",
            &[("a:b", &[], "max", false), ("c", &[], "", false), ("d", &[], "", false)],
            &["node", "x"],
        );
        check(
            "histogram_quantile(0.99, sum by (le) (increase(y_bucket[1h])))",
            &[("y_bucket", &[], "increase", true)],
            &["le"],
        );
    }

    #[test]
    fn times_are_divided_and_nothing_else() {
        let check = |expr: &str, by: u64, expected: &str| assert_eq!(faster(expr, by), expected);
        check("rate(x[5m]) < 3", 60, "rate(x[5s]) < 3");
        check("rate(x[5m]) < 3 > 1", 1, "rate(x[5m]) < 3 > 1");
        check("predict_linear(x[6h], <1d>) < 0", 60, "predict_linear(x[360s], 1440) < 0");
        check("x > 2 * (x offset 1h )", 60, "x > 2 * (x offset 60s )");
        check("x - time() < <21d>", 1, "x - time() < 1814400");
        assert_eq!((divided("10s", 60), divided("2m", 1)), ("1s".to_owned(), "2m".to_owned()));
    }
}
