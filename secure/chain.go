package secure

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// chain explains a certificate that was not accepted.
func (h *handshake) chain(err error) *HandshakeError {
	var failed *tls.CertificateVerificationError
	if !errors.As(err, &failed) || len(failed.UnverifiedCertificates) == 0 {
		return nil
	}
	v := verdict{handshake: h, chain: failed.UnverifiedCertificates, wrong: make(map[int]string)}
	v.dates(time.Now())
	e := v.explain(failed.Err)
	e.Err = failed
	e.Chain = describeChain(v.chain, v.wrong)
	return e
}

// verdict is what is wrong with a chain of certificates.
type verdict struct {
	*handshake
	chain []*x509.Certificate
	wrong map[int]string // by certificate
}

func (v verdict) dates(now time.Time) {
	for i, cert := range v.chain {
		switch {
		case now.After(cert.NotAfter):
			v.mark(i, "expired "+ago(now.Sub(cert.NotAfter))+" ago")
		case now.Before(cert.NotBefore):
			v.mark(i, "not valid for another "+ago(cert.NotBefore.Sub(now)))
		}
	}
}

func (v verdict) mark(i int, what string) {
	if i < 0 {
		return
	}
	if v.wrong[i] != "" {
		what = v.wrong[i] + "; " + what
	}
	v.wrong[i] = what
}

func (v verdict) explain(err error) *HandshakeError {
	var (
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		roots   x509.SystemRootsError
	)
	switch {
	case errors.As(err, &name):
		return v.wrongName(name)
	case errors.As(err, &roots):
		return &HandshakeError{Reason: "this system has no authorities to trust: " + shown(err.Error()), Advice: "install ca-certificates, or give --cafile"}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return v.outOfDate(invalid.Cert)
	case errors.As(err, &unknown):
		return v.unknownAuthority(unknown.Cert)
	}
	at := 0
	if errors.As(err, &invalid) {
		at = v.index(invalid.Cert)
	}
	reason := strings.TrimPrefix(err.Error(), "x509: ")
	v.mark(at, "refused")
	return &HandshakeError{Reason: "the peer's certificate is not valid: " + shown(reason), Advice: v.pinAdvice()}
}

func (v verdict) wrongName(e x509.HostnameError) *HandshakeError {
	v.mark(0, "not for "+shown(e.Host))
	reason := fmt.Sprintf("the peer's certificate is for %s, not for %s", names(e.Certificate), shown(e.Host))
	if len(e.Certificate.DNSNames)+len(e.Certificate.IPAddresses) == 0 && e.Certificate.Subject.CommonName != "" {
		reason += fmt.Sprintf(" (the common name %s does not count, RFC 9525)", shown(e.Certificate.Subject.CommonName))
	}
	return &HandshakeError{Reason: reason, Advice: "connect by a name that it is for, or " + v.pinAdvice()}
}

func (v verdict) outOfDate(cert *x509.Certificate) *HandshakeError {
	i := v.index(cert)
	if i < 0 {
		return &HandshakeError{Reason: fmt.Sprintf("the authority %s is trusted here but out of date: valid %s to %s",
			subject(cert), date(cert.NotBefore), date(cert.NotAfter)), Advice: "renew it in the CA file"}
	}
	if time.Now().Before(cert.NotBefore) {
		return &HandshakeError{Reason: fmt.Sprintf("certificate %d, %s, is not valid before %s; the clock here says %s",
			i+1, subject(cert), date(cert.NotBefore), date(time.Now())), Advice: "set the clock, or " + v.pinAdvice()}
	}
	return &HandshakeError{Reason: fmt.Sprintf("certificate %d, %s, has expired on %s; the clock here says %s",
		i+1, subject(cert), date(cert.NotAfter), date(time.Now())), Advice: "let the peer renew it, or " + v.pinAdvice()}
}

func (v verdict) unknownAuthority(cert *x509.Certificate) *HandshakeError {
	i := max(0, v.index(cert))
	cert = v.chain[i]
	if isSelfSigned(cert) && i == 0 {
		v.mark(i, "self-signed and not trusted here")
		return &HandshakeError{Reason: "the peer's certificate is self-signed and not trusted here", Advice: v.pinAdvice()}
	}
	if isSelfSigned(cert) {
		v.mark(i, "an authority that is not trusted here")
		return &HandshakeError{Reason: fmt.Sprintf("the peer's certificate is of the authority %s, which is not trusted here", subject(cert)), Advice: v.trustAdvice()}
	}
	v.mark(i, "its issuer is not trusted here and was not sent")
	advice := v.trustAdvice()
	if len(v.chain) == 1 {
		advice = "the peer may have forgotten an intermediate certificate; " + advice
	}
	return &HandshakeError{Reason: fmt.Sprintf("certificate %d, %s, is issued by %s, which is not trusted here and was not sent",
		i+1, subject(cert), issuer(cert)), Advice: advice}
}

// trustAdvice is what helps where the authority is not known.
func (v verdict) trustAdvice() string {
	if v.server {
		return v.pinAdvice()
	}
	return "trust its authority with --cafile FILE, or " + v.pinAdvice()
}

// pinAdvice is what helps where no authority would.
func (v verdict) pinAdvice() string {
	if v.server {
		return "let it show a good certificate of an authority in the file of client authorities"
	}
	return "compare the fingerprint with what the peer's owner says and give --pin " + Fingerprint(v.chain[0]) + ", or check nothing with --insecure"
}

// index returns -1 for a certificate that the peer did not send.
func (v verdict) index(cert *x509.Certificate) int {
	return slices.IndexFunc(v.chain, cert.Equal)
}

// ago writes a time in its largest unit.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.Round(time.Second).String()
}
