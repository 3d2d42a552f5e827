//! File content that arrives as base64 inside a JSON body, decoded piece by piece.
//!
//! The encoded text stays where it is, in the request's body: what is decoded at a time is one chunk. The whole text is
//! checked before the first byte goes to a sandbox, so that a wrong letter at its end leaves no trace.

use ::base64::alphabet::STANDARD;
use ::base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::error::ApiError;

/// Encoded bytes decoded at a time: a multiple of four, 48 KiB decoded.
const PIECE_BYTES: usize = 64 << 10;

/// Takes text with and without the `=` at its end.
const DECODER: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checked base64 text.
#[derive(Clone, Debug)]
pub struct Encoded(Bytes);

impl Encoded {
    /// Checks `text`, which is a part of `body` or was unescaped from it. `field` is its name, for the error.
    pub fn check(text: &str, body: &Bytes, field: &str) -> Result<Self, ApiError> {
        let bytes = part_of(body, text.trim_ascii_end());
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut pieces = bytes.chunks(PIECE_BYTES).peekable();
        while let Some(encoded) = pieces.next() {
            piece.clear();
            DECODER
                .decode_vec(encoded, &mut piece)
                .map_err(|error| ApiError::invalid(field, format!("{field} is not base64: {error}")))?;
            if pieces.peek().is_some() && piece.len() % 3 != 0 {
                return Err(ApiError::invalid(field, format!("{field} is not base64: '=' in the middle")));
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes, in pieces of at most 48 KiB.
    pub fn decoded<E: Send + 'static>(self) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static {
        stream::unfold(self.0, |mut text| async move {
            let encoded = text.split_to(text.len().min(PIECE_BYTES));
            // Checked before; what cannot be decoded would be no bytes.
            let piece = DECODER.decode(&encoded).unwrap_or_default();
            (!encoded.is_empty()).then(|| (Ok(Bytes::from(piece)), text))
        })
    }
}

/// `text` as bytes: the very bytes of `body` when it lies there, else a copy.
pub fn part_of(body: &Bytes, text: &str) -> Bytes {
    let lies_there = !text.is_empty() && body.as_ptr_range().contains(&text.as_ptr());
    if lies_there { body.slice_ref(text.as_bytes()) } else { Bytes::copy_from_slice(text.as_bytes()) }
}

/// A short text, decoded at once. `field` is its name, for the error.
pub fn decoded(field: &str, text: &str) -> Result<Bytes, ApiError> {
    let bytes = DECODER.decode(text.trim_ascii_end());
    bytes.map(Bytes::from).map_err(|error| ApiError::invalid(field, format!("{field} is not base64: {error}")))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn round(bytes: &[u8], text: String) {
        let body = Bytes::from(text);
        let text = std::str::from_utf8(&body).unwrap();
        let encoded = Encoded::check(text, &body, "content").unwrap();
        let pieces: Vec<Bytes> = encoded.decoded::<()>().map(Result::unwrap).collect().await;
        assert!(pieces.concat() == bytes);
    }

    #[tokio::test]
    async fn what_was_encoded_comes_back() {
        for length in [0, 1, 2, 3, 4, 49_151, 49_152, 49_153, 1 << 20] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7 + n / 256) as u8).collect();
            let text = ::base64::prelude::BASE64_STANDARD.encode(&bytes);
            round(&bytes, text.clone()).await;
            round(&bytes, text.trim_end_matches('=').to_owned()).await;
            round(&bytes, text + "\n").await;
        }
    }

    #[test]
    fn a_part_of_the_body_is_not_copied() {
        let body = Bytes::from_static(b"[\"abc\"]");
        let text = std::str::from_utf8(&body[2..5]).unwrap();
        assert_eq!(part_of(&body, text).as_ptr(), text.as_ptr());
        assert_eq!(part_of(&body, "else"), "else");
        assert_eq!(part_of(&body, ""), "");
    }

    #[test]
    fn what_is_not_base64_is_refused_with_the_field() {
        let padded_middle = format!("{}=={}", "A".repeat(PIECE_BYTES - 2), "AAAA".repeat(4));
        for text in ["a", "ab!d", "=", "AA==AAAA", "äöü", padded_middle.as_str()] {
            let body = Bytes::copy_from_slice(text.as_bytes());
            let text = std::str::from_utf8(&body).unwrap();
            let error = Encoded::check(text, &body, "content_base64").unwrap_err();
            assert!(error.message().starts_with("content_base64 is not base64"), "{}", error.message());
        }
    }
}
