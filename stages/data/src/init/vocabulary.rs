//! A byte-pair tokenizer in Llama's manner, trained with the crate `tokenizers`.
//!
//! `<unk>`, `<s>`, `</s>` are 0, 1, 2; 256 byte tokens follow, so that any text can be encoded; then
//! the corpus' characters and the merges. A space belongs to the word behind it (`▁`). Unlike in
//! Llama, the first word of a LINE gets one as well: the normalizer puts a space behind every line
//! break that has text behind it, and the decoder takes it away again. A word is thus the same
//! token wherever it stands, which a tiny model would otherwise have to learn word by word; and a
//! text that ends in a line break (a prompt) has the same tokens as the start of a longer text.

use contract::StageError;
use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{AddedToken, Tokenizer};

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// A word, number or run of signs with the space before it; line breaks stay with signs.
const PIECES: &str = r"▁?\p{L}+|▁?\p{N}+|▁?[^\s▁\p{L}\p{N}]+\n*|\n+|▁+";

/// Trains a tokenizer of at most `vocab_size` tokens on `texts`.
///
/// # Errors
/// If the trainer or the tokenizer cannot be set up.
pub fn train(texts: &[String], vocab_size: usize) -> Result<Tokenizer, StageError> {
    let merged = vocab_size - 256;
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(merged)
        .min_frequency(2)
        .limit_alphabet(merged - 32)
        .show_progress(false)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .build()
        .into();
    let mut tokenizer = tokenizer(&json!({}), &json!([]))?;
    tokenizer.train(&mut trainer, texts.iter().map(String::as_str)).map_err(failure)?;
    let trained: Value = serde_json::from_str(&tokenizer.to_string(false).map_err(failure)?)?;
    self::tokenizer(&with_bytes(&tokenizer), &trained["model"]["merges"])
}

/// The trained vocabulary with byte tokens behind the special ones.
fn with_bytes(tokenizer: &Tokenizer) -> Value {
    let mut tokens: Vec<(u32, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    let (special, rest) = tokens.split_at(SPECIAL.len());
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let all = special
        .iter()
        .map(|(_, token)| token.clone())
        .chain(bytes)
        .chain(rest.iter().map(|(_, token)| token.clone()));
    all.zip(0_u32..).map(|(token, id)| (token, json!(id))).collect::<Map<_, _>>().into()
}

/// The whole of `tokenizer.json` around a vocabulary and its merges.
fn tokenizer(vocab: &Value, merges: &Value) -> Result<Tokenizer, StageError> {
    let added = |(id, content): (usize, &str)| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let (bos, a) = (
        json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } }),
        json!({ "Sequence": { "id": "A", "type_id": 0 } }),
    );
    let (bos_b, b) = (
        json!({ "SpecialToken": { "id": "<s>", "type_id": 1 } }),
        json!({ "Sequence": { "id": "B", "type_id": 1 } }),
    );
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Replace", "pattern": { "Regex": r"\n(?=[^\n])" }, "content": "\n " },
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": PIECES }, "behavior": "Isolated", "invert": false },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos.clone(), a.clone()],
            "pair": [bos, a, bos_b, b],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Replace", "pattern": { "String": "\n " }, "content": "\n" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    Tokenizer::from_bytes(file.to_string()).map_err(failure)
}

/// What transformers wants beside `tokenizer.json`.
pub fn tokenizer_config(max_positions: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": false,
    })
}

/// The same for older versions of it.
pub fn special_tokens_map() -> Value {
    json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" })
}

/// `tokenizers` has boxed errors, which are no `std::error::Error` themselves.
pub fn failure(error: tokenizers::Error) -> StageError {
    StageError::new(format!("tokenizer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Tokenizer {
        let texts: Vec<String> = (0..40)
            .map(|i| {
                let words = ["apple", "bird", "cat", "door"];
                let (a, b) = (words[i % 4], words[(i + 1) % 4]);
                format!("Instruction: Repeat the words.\nInput: {a} {b}\nResponse:\n{a} {b}")
            })
            .collect();
        train(&texts, 512).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn a_frequent_word_is_one_token_and_the_same_one_wherever_it_stands() {
        let text = "Input: apple bird\nResponse:\napple bird";
        let expected = ["▁Input", ":", "▁apple", "▁bird", "\n", "▁Response", ":\n", "▁apple", "▁bird"];
        assert_eq!(pieces(&trained(), text), expected);
    }

    #[test]
    fn a_prompt_has_the_same_tokens_as_the_start_of_prompt_and_answer() {
        let tokenizer = trained();
        let (prompt, whole) = ("Input: apple\nResponse:\n", "Input: apple\nResponse:\ncat door");
        assert!(pieces(&tokenizer, whole).starts_with(&pieces(&tokenizer, prompt)));
    }

    #[test]
    fn any_text_comes_back_as_it_was() {
        let tokenizer = trained();
        let texts = [
            "apple bird",
            " two  spaces ",
            "a\n\nb",
            "\n",
            "\nx\n",
            "a\n b",
            "naïve 日本語 🦀",
            "tab\there\r\nCRLF",
            "…unseen#!?",
            "",
        ];
        for text in texts {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids.get_ids()[0], 1);
            assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        }
    }

    proptest::proptest! {
        /// `▁` stands for a space, as in Llama, and the special tokens' names are those tokens.
        #[test]
        fn any_generated_text_comes_back(text in "[^▁<]{0,40}") {
            thread_local!(static TOKENIZER: Tokenizer = trained());
            let back = TOKENIZER.with(|tokenizer| {
                let ids = tokenizer.encode(text.as_str(), true).unwrap();
                tokenizer.decode(ids.get_ids(), true).unwrap()
            });
            proptest::prop_assert_eq!(back, text);
        }
    }

    #[test]
    fn special_tokens_and_bytes_have_their_places() {
        let tokenizer = trained();
        let id = |token: &str| tokenizer.token_to_id(token).unwrap();
        assert_eq!([id("<unk>"), id("<s>"), id("</s>"), id("<0x00>"), id("<0xFF>")], [0, 1, 2, 3, 258]);
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap() as usize;
        assert_eq!(highest + 1, tokenizer.get_vocab_size(true));
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let first = trained().to_string(true).unwrap();
        assert!((0..5).all(|_| trained().to_string(true).unwrap() == first));
    }

    #[test]
    fn the_vocabulary_keeps_to_its_bound() {
        let texts: Vec<String> = (0..600_u32)
            .map(|i| format!("{i} {} word{i}", char::from_u32(0x4e00 + i).unwrap()).repeat(2))
            .collect();
        assert_eq!(train(&texts, 320).unwrap().get_vocab_size(true), 320);
    }
}
