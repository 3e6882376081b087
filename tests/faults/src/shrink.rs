//! Fewer faults that still cause a problem of the same kind, so that a person can read what happened.

/// How many runs shortening a plan may take.
const RUNS_MAX: usize = 60;

/// Returns a part of the faults with these numbers that `fails` still, leaving out as many as it can in a bounded number of tries.
pub(crate) fn shrink(mut faults: Vec<usize>, mut fails: impl FnMut(&[usize]) -> bool) -> Vec<usize> {
    let mut runs = 0;
    let mut size = faults.len().div_ceil(2);
    while size > 0 {
        let (mut from, mut has_shrunk) = (0, false);
        while from < faults.len() && runs < RUNS_MAX {
            let to = (from + size).min(faults.len());
            let rest = [&faults[..from], &faults[to..]].concat();
            runs += 1;
            if fails(&rest) {
                (faults, has_shrunk) = (rest, true);
            } else {
                from = to;
            }
        }
        // What is left may be less than before allows.
        if !has_shrunk || size > 1 {
            size /= 2;
        }
        if runs >= RUNS_MAX {
            break;
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_faults_that_are_needed_are_left() {
        let needed = [3, 17, 18];
        let mut runs = 0;
        let left = shrink((0..40).collect(), |faults| {
            runs += 1;
            needed.iter().all(|needed| faults.contains(needed))
        });
        assert_eq!(left, needed);
        assert!(runs <= RUNS_MAX, "{runs} runs");
        assert_eq!(shrink((0..40).collect(), |_| false).len(), 40);
        assert!(shrink((0..40).collect(), |_| true).is_empty());
    }
}
