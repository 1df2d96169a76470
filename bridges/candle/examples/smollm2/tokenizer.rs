//! The tokenizer of SmolLM2 from its GGUF file.

use crate::Result;
use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::byte_level::ByteLevel as Decoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

/// What `tokenizer.ggml.token_type` says of a token such as `<|im_start|>`.
const CONTROL: i32 = 3;

/// candle's own `TokenizerFromGguf` does not know this kind: it would add a space at the start
/// of a text, and keep the digits of a number together.
pub fn from_gguf(content: &Content) -> Result<Tokenizer> {
    let array = |key: &str| -> Result<&Vec<Value>> {
        let value = content.metadata.get(key);
        Ok(value.ok_or_else(|| format!("the GGUF file has no {key}"))?.to_vec()?)
    };
    let strings = |key: &str| -> Result<Vec<String>> {
        array(key)?.iter().map(|value| Ok(value.to_string()?.clone())).collect()
    };
    let kinds = array("tokenizer.ggml.token_type")?;
    let kinds = kinds.iter().map(Value::to_i32).collect::<candle_core::Result<Vec<_>>>()?;
    build(strings("tokenizer.ggml.tokens")?, &strings("tokenizer.ggml.merges")?, &kinds)
}

fn build(tokens: Vec<String>, merges: &[String], kinds: &[i32]) -> Result<Tokenizer> {
    let control = tokens.iter().zip(kinds).filter(|&(_, &kind)| kind == CONTROL);
    let control: Vec<_> = control.map(|(token, _)| AddedToken::from(token, true)).collect();
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    let merges = merges.iter().map(|merge| {
        let (left, right) = merge.split_once(' ').ok_or_else(|| format!("a merge {merge:?}"))?;
        Ok((left.to_string(), right.to_string()))
    });
    let merges = merges.collect::<Result<Vec<_>>>()?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(|error| error.to_string())?);
    let steps: Vec<PreTokenizerWrapper> =
        vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(steps)))
        .with_decoder(Some(Decoder::new(true, true, true)));
    tokenizer.add_special_tokens(control).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that a tokenizer of single characters and a few merges splits a text into.
    fn pieces(text: &str) -> Vec<String> {
        let tokens =
            ["<|im_start|>", "f", "n", "\u{120}", "0", "3", "8", "2", "fn", "\u{120}fn", "38"];
        let merges = ["f n", "\u{120} fn", "3 8"].map(String::from);
        let kinds = [CONTROL, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        let tokenizer = build(tokens.map(String::from).to_vec(), &merges, &kinds).unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
        encoding.get_tokens().to_vec()
    }

    #[test]
    fn texts_are_split_as_smollm2_splits_them() {
        assert_eq!(pieces("fn fn"), ["fn", "\u{120}fn"], "no space at the start");
        assert_eq!(pieces("0382"), ["0", "3", "8", "2"], "digits one by one");
        assert_eq!(pieces("fn<|im_start|>fn"), ["fn", "<|im_start|>", "fn"]);
    }
}
