//! Comparisons that tolerate nothing.

use lora_kernels::Element;

/// Fails unless both hold the same bits.
pub fn assert_same_bits<E: Element>(what: &str, got: &[E], want: &[E]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let same = |(g, w): (&E, &E)| bytemuck::bytes_of(g) == bytemuck::bytes_of(w);
    report_first(what, got, want, same);
}

/// Fails unless both hold the same numbers; unlike the bits, the sign of a zero is free.
pub fn assert_same_values<E: Element>(what: &str, got: &[E], want: &[E]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    report_first(what, got, want, |(g, w)| g.to_f64() == w.to_f64());
}

fn report_first<E: Element>(what: &str, got: &[E], want: &[E], same: impl Fn((&E, &E)) -> bool) {
    let differ: Vec<usize> =
        got.iter().zip(want).enumerate().filter(|(_, p)| !same(*p)).map(|(i, _)| i).collect();
    if let Some(&i) = differ.first() {
        let (got, want) = (got[i].to_f64(), want[i].to_f64());
        let (count, last) = (differ.len(), differ[differ.len() - 1]);
        panic!("{what}: {count} entries differ, {i} to {last}; [{i}] is {got:e}, not {want:e}");
    }
}
